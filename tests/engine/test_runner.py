"""Paged equals dense: whatever is served beside it, however it is cut and delayed, a prompt gets what it gets alone."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.engines import Expected, check_equal, check_idle, engine_of, expected, greedy, record
from tests.fakes import VARIANTS, tiny_v2, tiny_vl2, tokens
from tests.imagegpts import tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, MINDFORMERS, ROPES, tiny_llama

PLAIN = MINDFORMERS | {"pad_token_id": None}  # `generate()` hides a drawn padding id from itself, as if it were padding
DYNAMIC: dict[str, dict[str, Any]] = {
    "llama, dynamic": HUGGING_FACE | {"max_position_embeddings": 12, "rope_scaling": ROPES["dynamic"]},
    "llama, DYNAMIC_NTK": PLAIN | {"extend_method": "DYNAMIC_NTK", "is_dynamic": True, "max_position_embedding": 12},
}
LLAMAS: dict[str, dict[str, Any]] = {
    "llama": PLAIN,
    "llama, Hugging Face": HUGGING_FACE,
    "llama, fused": PLAIN | {"qkv_concat": True, "qkv_has_bias": True, "use_flash_attention": True},
    "llama, experts": PLAIN | {"moe_config": EXPERTS},
    "llama, in two dimensions": PLAIN | {"rmsnorm_compute_2d": True, "residual_dtype": "float32"},
    "llama, llama3": HUGGING_FACE | {"rope_scaling": ROPES["llama3"]},
    **DYNAMIC,
}
FAMILIES = [*VARIANTS, *LLAMAS, "vl2", "imagegpt"]
PROMPT = tuple(tokens(14).tolist())
NEW = 5


@cache
def model_of(family: str) -> Any:
    if family in VARIANTS:
        return tiny_v2(base=VARIANTS[family])
    if family in LLAMAS:
        return tiny_llama(base=LLAMAS[family])
    return tiny_vl2() if family == "vl2" else tiny_imagegpt()


@cache
def wanted(family: str, prompt: tuple[int, ...], new: int = NEW) -> Expected:
    return expected(model_of(family), prompt, new)


def within(family: str, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """ImageGPT knows 16 colours and a start token."""
    return tuple(token % 17 for token in prompt) if family == "imagegpt" else prompt


@dataclass(frozen=True)
class Asked:
    """A drawn request: when it comes, when it is aborted if at all, and its outputs, all of them greedy."""

    prompt: tuple[int, ...]
    comes: int
    priority: int
    n: int
    aborted: int | None


@st.composite
def requests(draw: st.DrawFn) -> list[Asked]:
    """Some of them are begun alike, and some are equal."""
    asked = []
    for _ in range(draw(st.integers(1, 6))):
        start, length = draw(st.integers(0, 2)), draw(st.integers(1, 14))
        turned = PROMPT[:start] + PROMPT[::-1][start:]
        prompt = (PROMPT if draw(st.booleans()) else turned)[:length]
        aborted = draw(st.none() | st.none() | st.integers(0, 8))
        asked.append(Asked(prompt, draw(st.integers(0, 5)), draw(st.integers(-1, 1)), draw(st.integers(1, 3)), aborted))
    return asked


@st.composite
def limits(draw: st.DrawFn) -> dict[str, Any]:
    """As few pages as the longest request needs, or some more."""
    batch, size = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 4, 8]))
    return {
        "max_batch": batch,
        "token_budget": draw(st.integers(batch, 12)),
        "page_size": size,
        "num_pages": -(-(len(PROMPT) + NEW) // size) + draw(st.integers(0, 8)),
        "host_pages": draw(st.sampled_from([0, 4, 64])),
        "chunk_prefill": draw(st.booleans()),
        "reuse_prefixes": draw(st.booleans()),
    }


def serve(family: str, asked: list[Asked], **settings: Any) -> None:
    """Run the requests as they come, and compare what was not aborted with `generate()`."""
    engine = engine_of(model_of(family), **settings)
    rows, names, found = record(engine).drawn, {}, {}
    step = 0
    while engine.has_work or len(names) < len(asked):
        for i, each in enumerate(asked):
            if each.comes == step:
                prompt, params = within(family, each.prompt), greedy(NEW, n=each.n)
                names[i] = engine.add_request(prompt, params, id=str(i), priority=each.priority)
            if each.aborted is not None and each.comes + each.aborted == step:
                engine.abort(str(i))
        for update in engine.step():
            if update.completion is not None:
                found[update.request, update.index] = update.completion
        step += 1
    check_idle(engine)
    for (name, index), completion in found.items():
        id_ = name if index == 0 else f"{name}#{index}"
        prompt = within(family, asked[int(name)].prompt)
        check_equal(completion.tokens, rows[id_], wanted(family, prompt), 1e-4)
    whole = [(str(i), index) for i, each in enumerate(asked) if each.aborted is None for index in range(each.n)]
    assert set(whole) <= set(found)


@pytest.mark.one_in(8)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
@given(asked=requests(), drawn=limits())
def test_any_schedule_gives_what_generate_gives(family, asked, drawn):
    serve(family, asked, **drawn)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(asked=requests(), drawn=limits())
def test_many_more_schedules_give_what_generate_gives(family, asked, drawn):
    serve(family, asked, **drawn)
