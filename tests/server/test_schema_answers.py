"""Answers to schemas: what 200 drawn schemas let out of random logits keeps to them, read by a check of its own."""

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelwright.errors import GuideError
from modelwright.server.constraints import read_constraint
from tests.server.guided import COMPILER, PLAIN, draw
from tests.server.schemas import SCHEMAS, holds, loads

_HONEST = ("Unsatisfiable", "not disjoint", "min/maxProperties only supported when all keys")
"""Why llguidance refuses some of what is drawn."""


def test_row_21_answers_validate_for_200_schemas():
    counted = Counter[str]()

    @settings(max_examples=200, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(SCHEMAS, st.integers(0, 2**20))
    def answer_validates(schema, seed):
        asked = {"type": "json_schema", "json_schema": {"name": "drawn", "schema": schema}}
        guide = read_constraint({"response_format": asked}, PLAIN).guide
        assert guide is not None
        try:
            COMPILER.start(guide, 0)
        except GuideError as error:
            assert any(reason in str(error) for reason in _HONEST), error
            counted["refused"] += 1
            return
        answer, ended = draw(guide, seed)
        counted["answers" if ended else "cut"] += 1
        if ended:
            assert holds(schema, loads(answer)), (schema, answer)

    answer_validates()
    assert counted["answers"] > 100, counted
