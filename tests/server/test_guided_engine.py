"""Guides in a running engine: what ends an answer, and that a bad guide costs nobody else anything."""

import asyncio
import json

import pytest
import torch

from modelwright.engine.async_engine import AsyncEngine
from modelwright.engine.params import Guide, SamplingParams
from modelwright.errors import GuideError, RequestFailed
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.server.constraints import read_constraint
from tests.engine.engines import engine_of
from tests.llamas import HUGGING_FACE
from tests.server.guided import CITY, PLAIN, PROMPT, TOKENIZER, TOOLS, parsed, read
from tests.server.schemas import holds

torch.manual_seed(0)
CONFIG = HUGGING_FACE | {"vocab_size": len(TOKENIZER), "max_position_embeddings": 512, "eos_token_id": None}
MODEL = LlamaForCausalLM(LlamaConfig.from_dict(CONFIG)).eval()
FORM = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
BAD = {
    "100k enum": ({"json": {"enum": [f"v{number}" for number in range(100_000)]}}, GuideError),
    "5000 deep": ({"json": '{"items":' * 60 + "{}" + "}" * 60}, None),
    "self reference": ({"json": {"$ref": "#"}}, GuideError),
    "reference without end": ({"json": {"type": "array", "items": {"$ref": "#"}}}, None),
    "expression of a million": ({"regex": "(a{1,1000}){1,1000}"}, None),
    "no expression": ({"regex": "(a"}, GuideError),
    "terms without end": ({"grammar": 'start: ("a"? "b"?){1,800}'}, None),
    "many terms": ({"grammar": 'start: "b" ' + " ".join(['"a"?'] * 2500)}, RequestFailed),
}


def engine():
    return engine_of(MODEL, TOKENIZER, num_pages=600, token_budget=64)


def asked(constraint, **fields) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 120, "seed": 0, "guide": constraint.guide} | fields)


@pytest.mark.parametrize("stop", ["}", '"', ":", "\n"])
def test_row_23_stop_never_ends_inside_and_length_may_cut(stop):
    constraint, reasons = read_constraint({"response_format": FORM}, PLAIN), set()
    for most in (6, 150):
        params = [
            asked(constraint, stop=(stop,), stop_token_ids=(5, 13), max_tokens=most, seed=seed) for seed in range(4)
        ]
        for result in engine().generate([PROMPT] * len(params), params):
            [completion] = result.completions
            reasons.add(completion.finish_reason)
            if completion.finish_reason == "stop":
                assert holds(CITY, json.loads(completion.text)) and completion.stop_reason is None
            else:
                assert completion.finish_reason == "length" and completion.tokens
    assert reasons == {"stop", "length"}


def test_stops_count_in_the_free_text_beside_tools():
    constraint = read_constraint({"tools": TOOLS}, PLAIN)
    [free] = engine().generate([PROMPT], asked(constraint))
    text = free.completions[0].text
    [stopped] = engine().generate([PROMPT], asked(constraint, stop=(text[9:12],)))
    assert (stopped.completions[0].finish_reason, stopped.completions[0].stop_reason) == ("stop", text[9:12])
    assert stopped.completions[0].text == text[: text.index(text[9:12])]


def test_several_outputs_each_call_on_their_own():
    fields = {"tools": TOOLS[:2], "tool_choice": "required", "parallel_tool_calls": False}
    constraint = read_constraint(fields, PLAIN)
    [result] = engine().generate([PROMPT], asked(constraint, n=3, max_tokens=400))
    assert len(result.completions) == 3
    for completion in result.completions:
        assert completion.finish_reason == "stop"
        said, [(name, _)] = parsed(read(constraint.reader(), [completion.text]))
        assert said == "" and name in ("get_weather", "now")


def test_row_22_bad_guides_are_refused_or_end_alone_while_others_stream():
    """Beside each, an answer streams on with the text that it has alone."""
    plain = SamplingParams(max_tokens=40, min_tokens=40, seed=3)
    [alone] = engine().generate([PROMPT], plain)

    async def streamed(serving, params):
        return "".join([update.text async for update in serving.stream(PROMPT, params)])

    async def both():
        async with AsyncEngine(engine()) as serving:
            for name, (output, error) in BAD.items():
                constraint = read_constraint({"structured_outputs": output}, PLAIN)
                beside = asyncio.create_task(streamed(serving, plain))
                try:
                    await streamed(serving, asked(constraint, max_tokens=30))
                    assert error is None, f"{name} was served"
                except (GuideError, RequestFailed) as raised:
                    assert error is not None and isinstance(raised, error), (name, raised)
                assert await beside == alone.completions[0].text, name

    asyncio.run(both())


def test_boxes_and_a_form_go_together():
    constraint = read_constraint({"response_format": FORM, "grounding": {"constrain": True}}, PLAIN)
    assert constraint.guide is not None and constraint.guide.boxes
    [result] = engine().generate([PROMPT], asked(constraint, max_tokens=300))
    assert holds(CITY, json.loads(result.completions[0].text))
    assert isinstance(constraint.guide, Guide)
