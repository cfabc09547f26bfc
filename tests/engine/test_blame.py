"""A step that raises: the one request that raises alone ends, and the others answer as in a quiet run."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from modelwright.engine import engine as engine_module
from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.engine.results import Completion
from modelwright.ops.backends import cpu as kernels
from modelwright.parallel import RankLost
from tests.engine.engines import check_idle, engine_of, greedy
from tests.fakes import tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.llamas import HUGGING_FACE, tiny_llama

MODELS = {"llama": tiny_llama(base=HUGGING_FACE), "v2": tiny_v2()}
POISON = 61
"""A token whose passes raise."""
PROMPTS = [[token for token in tokens(length, seed=length).tolist() if token != POISON] for length in (5, 9, 22, 13)]
PARAMS = [
    greedy(9, logprobs=2, logit_bias={POISON: -100.0}),
    SamplingParams(max_tokens=9, seed=7, temperature=1.5, ignore_eos=True, n=2, logit_bias={POISON: -100.0}),
]


class Poisoned(Exception):
    """What the tests' passes raise."""


def poison(engine: Engine, when: Callable[[Any], bool], late: bool = False) -> list[int]:
    """Let the engine's passes raise where `when` holds, before or after they have written pages; counts them."""
    forward, raised = engine._runner._forward, [0]

    def poisoned(one: Any) -> Any:
        raises = when(one)
        result = forward(one) if late or not raises else None
        if raises:
            raised[0] += 1
            raise Poisoned("no such\nluck")
        return result

    engine._runner._forward = poisoned  # type: ignore[method-assign]
    return raised


def serve(engine: Engine, asked: Sequence[tuple[Any, SamplingParams]], between: int = 0) -> list[list[Completion]]:
    """All of them side by side, as a server does: each request's completions, by index."""
    ended: dict[str, list[Completion]] = {}

    def step() -> None:
        try:
            updates = engine.step()
        except Exception as error:
            updates = engine.recover(error)
        for update in updates:
            if update.completion is not None:
                ended.setdefault(update.request, []).append(update.completion)

    names = []
    for prompt, params in asked:
        names.append(engine.add_request(prompt, params))
        for _ in range(between):
            step()
    while engine.has_work:
        step()
    check_idle(engine)
    return [sorted(ended[name], key=lambda one: one.index) for name in names]


def check_blamed(found: list[Completion], error: type[Exception], n: int) -> None:
    assert [one.finish_reason for one in found] == ["error"] * n
    for one in found:
        assert isinstance(one.cause, error) and one.error is not None
        assert one.error.startswith(f"the model failed: {error.__name__}: no such")


LIMITS: dict[str, dict[str, Any]] = {
    "eager": {"backend": "eager"},
    "as it comes": {},
    "small budget": {"token_budget": 5},
    "few pages": {"num_pages": 12, "backend": "eager"},
    "few pages, and pages on the host": {"num_pages": 12, "host_pages": 6},
    "whole prompts": {"chunk_prefill": False},
    "nothing found": {"reuse_prefixes": False},
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("family", "name", "late"),
    [*(("llama", name, bool(i % 2)) for i, name in enumerate(LIMITS)), ("v2", "as it comes", True)],
)
def test_the_one_that_raises_alone_ends_and_the_others_do_not_notice(family, name, late):
    limits = {"batch_invariant": True} | LIMITS[name]
    good = [(PROMPTS[0], PARAMS[0]), (PROMPTS[1], PARAMS[1]), (PROMPTS[2], PARAMS[0])]
    quiet = [serve(engine_of(MODELS[family], **limits), [each])[0] for each in good]
    bad = [([*PROMPTS[3][:4], POISON, 7], greedy(9, n=2)), ([3, POISON], greedy(4))]
    for between in (0, 2):
        engine = engine_of(MODELS[family], **limits)
        raised = poison(engine, lambda one: POISON in one.tokens, late)
        found = serve(engine, [*good[:2], bad[0], good[2], bad[1]], between)
        assert [*found[:2], found[3]] == quiet  # tokens, text, reasons and log-probabilities, to the last bit
        check_blamed(found[2], Poisoned, 2)
        check_blamed(found[4], Poisoned, 1)
        assert raised[0] >= 2


@pytest.mark.skipif(not kernels.available(), reason="there are no kernels to record")
def test_a_recorded_decode_that_raises_blames_the_one_that_drew_the_token():
    model = MODELS["llama"]
    params = [greedy(12), greedy(12, logit_bias={POISON: 100.0}), greedy(12)]
    quiet = [serve(engine_of(model, backend="record"), [(PROMPTS[i], params[i])])[0] for i in (0, 2)]
    engine = engine_of(model, backend="record")
    raised = poison(engine, lambda one: POISON in one.tokens, late=True)
    first, blamed, last = serve(engine, list(zip(PROMPTS, params, strict=False)), between=3)
    assert [first, last] == quiet and raised[0] == 2
    check_blamed(blamed, Poisoned, 1)
    assert blamed[0].tokens == (POISON,)  # what it had is not lost


def test_where_the_sampler_raises(monkeypatch):
    model, sample = MODELS["llama"], engine_module.sample
    quiet = serve(engine_of(model), [(PROMPTS[0], greedy(6))])

    def poisoned(logits: torch.Tensor, rows: Any) -> Any:
        if any(POISON in row.tokens for row in rows):
            raise Poisoned("no such luck")
        return sample(logits, rows)

    monkeypatch.setattr(engine_module, "sample", poisoned)
    found = serve(engine_of(model), [(PROMPTS[0], greedy(6)), ([POISON, 3], greedy(6))])
    assert found[:1] == quiet
    check_blamed(found[1], Poisoned, 1)


def test_a_picture_that_cannot_be_encoded_is_its_own_requests_fault(monkeypatch):
    model = tiny_vl2()
    good, bad = vl2_inputs([[(1, 1)]]), vl2_inputs([[(2, 1)]])
    quiet = serve(engine_of(model, token_budget=64), [(good, greedy(5))])
    encode = model.encode_pictures

    def poisoned(tiles: torch.Tensor, crops: Any) -> Any:
        if list(crops) == [(2, 1)]:
            raise Poisoned("no such luck")
        return encode(tiles, crops)

    monkeypatch.setattr(model, "encode_pictures", poisoned)
    engine = engine_of(model, token_budget=64)
    found = serve(engine, [(good, greedy(5)), (bad, greedy(5)), (PROMPTS[1], greedy(5))])
    assert found[:1] == quiet and found[2][0].finish_reason == "length"
    check_blamed(found[1], Poisoned, 1)


def test_what_only_several_bring_about_is_nobodys_fault():
    asked = [(prompt, greedy(6)) for prompt in PROMPTS]
    quiet = [serve(engine_of(MODELS["llama"]), [each])[0] for each in asked]
    engine = engine_of(MODELS["llama"])
    raised = poison(engine, lambda one: len(one.tables) > 2)  # as where memory ends
    assert serve(engine, asked) == quiet and raised[0] >= 1


def test_where_all_raise_alone_all_end_and_the_next_is_served():
    engine = engine_of(MODELS["llama"])
    broken = [True]
    poison(engine, lambda one: broken[0])
    for completions in serve(engine, [(prompt, greedy(6)) for prompt in PROMPTS]):
        check_blamed(completions, Poisoned, 1)
    broken[0] = False
    quiet = serve(engine_of(MODELS["llama"]), [(PROMPTS[0], greedy(6))])
    assert serve(engine, [(PROMPTS[0], greedy(6))]) == quiet


def test_what_raises_before_there_is_a_step_ends_all_and_the_next_is_served(monkeypatch):
    engine = engine_of(MODELS["llama"])

    def raises(contents: bool = True) -> bool:
        raise Poisoned("no such luck")

    monkeypatch.setattr(engine._state, "look", raises)
    for completions in serve(engine, [(prompt, greedy(6)) for prompt in PROMPTS]):
        check_blamed(completions, Poisoned, 1)
    monkeypatch.undo()
    assert len(serve(engine, [(PROMPTS[0], greedy(6))])[0][0].tokens) == 6


def test_lost_ranks_are_nobodys_fault_and_the_engines_end():
    engine = engine_of(MODELS["llama"])
    engine.add_request(PROMPTS[0], greedy(6))
    with pytest.raises(RankLost, match="gone"):
        engine.recover(RankLost("gone"))


def test_generate_raises_what_the_model_raised():
    engine = engine_of(MODELS["llama"])
    poison(engine, lambda one: True)
    with pytest.raises(Poisoned):
        engine.generate(PROMPTS, greedy(6))
    check_idle(engine)
