"""Pictures in the engine: encoded once, told apart by their pixels, read in parts, and the answers of `generate()`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import modelwright
from modelwright import zoo
from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from tests.engine.engines import check_equal, check_idle, engine_of, expected, greedy, record, tokens_of
from tests.fakes import tiny_vl2, vl2_inputs

SHAPES = Path(__file__).parents[2] / "examples" / "pictures" / "shapes.png"
Batch = dict[str, torch.Tensor]


def batch(*grids: tuple[int, int], seed: int = 0, words: int = 3) -> Batch:
    return vl2_inputs([list(grids)], seed=seed, words=words)


def other_pixels(inputs: Batch) -> Batch:
    """The same tokens and places around another picture."""
    return inputs | {"images": inputs["images"] + 1.0}


def wanted(model: Any, inputs: Batch, new: int = 6):
    rest = {name: part for name, part in inputs.items() if name != "input_ids"}
    return expected(model, inputs["input_ids"], new, **rest)


def check(model: Any, prompts: list[Batch], new: int = 6, within: float = 1e-4, **settings: Any) -> Engine:
    engine = engine_of(model, **settings)
    recorded = record(engine)
    for prompt, result in zip(prompts, engine.generate(prompts, greedy(new)), strict=True):
        own = wanted(model, prompt, new)
        check_equal(result.completions[0].tokens, recorded.drawn[result.request], own, within)
    check_idle(engine)
    return engine


@pytest.mark.one_in(4)
@pytest.mark.parametrize("grids", [[], [(1, 1)], [(2, 1), (1, 2)], [(1, 1)] * 3], ids=["none", "one", "two", "three"])
@pytest.mark.parametrize("budget", [5, 64])
@pytest.mark.parametrize("fields", [{}, {"tile_tag": "1D"}, {"global_view_pos": "tail"}], ids=["2D", "1D", "tail"])
def test_pictures_read_in_parts_or_at_once(grids, budget, fields):
    model = tiny_vl2(**fields)
    count = model.config.picture_tokens
    prompts = [vl2_inputs([list(grids)], seed=seed, count=count) for seed in (0, 1)]
    check(model, prompts, token_budget=budget)


def test_a_picture_that_two_prompts_show_is_encoded_once():
    model, first = tiny_vl2(), batch((2, 1))
    second = first | {"input_ids": first["input_ids"].clone()}
    second["input_ids"][0, 0] = 7  # so that no page is found again
    engine = check(model, [first, second, first])
    assert engine._pictures is not None and engine._pictures.encoded == 1


def test_rows_beyond_those_kept_are_made_again():
    model = tiny_vl2()
    prompts = [batch((1, 1), seed=seed) for seed in range(3)]
    engine = check(model, [*prompts, *prompts], kept_pictures=1, reuse_prefixes=False, max_batch=1)
    assert engine._pictures is not None
    assert engine._pictures.encoded >= 6
    assert len(engine._pictures._rows) == 1


def test_pixels_decide_what_is_found_again():
    """The same picture is found with the words before it; another picture at the same place shares the words only."""
    model, first = tiny_vl2(), batch((1, 2), words=4)
    length = first["input_ids"].shape[1]
    engine = engine_of(model, token_budget=64)

    def computed(inputs: Batch) -> int:
        recorded, before = record(engine), 0
        engine.add_request(inputs, greedy(2), id="one")
        while engine.has_work:
            engine.step()
            assert engine.statistics is not None
            before += engine.statistics.step.tokens
        own = wanted(model, inputs, 2)
        check_equal(own.tokens, recorded.drawn["one"], own, 1e-4)
        return before - 1  # the second token's pass

    assert computed(first) == length
    assert computed(first) == length - (length - 1) // 4 * 4
    assert computed(other_pixels(first)) == length - 4
    assert computed(other_pixels(first)) == length - (length - 1) // 4 * 4
    assert engine._pictures is not None and engine._pictures.encoded == 2


def test_pictures_are_encoded_anew_once_they_are_forgotten():
    model, picture = tiny_vl2(), batch((2, 1))
    engine = engine_of(model)
    assert engine._pictures is not None
    for encoded, forgets in ((1, False), (1, False), (2, True)):
        if forgets:
            with torch.no_grad():
                for weight in model.projector.parameters():
                    weight.mul_(1.5)
            engine.forget_prefixes()
        assert tokens_of(engine.generate([picture], greedy(6))) == [wanted(model, picture).tokens]
        assert engine._pictures.encoded == encoded


@pytest.mark.parametrize("host_pages", [0, 64])
def test_preemption_in_the_middle_of_pictures(host_pages):
    model = tiny_vl2()
    prompts = [batch((1, 1), (1, 1), seed=seed) for seed in range(4)]
    new, length = 24, prompts[0]["input_ids"].shape[1]
    two_begin = 2 * -(-(length + 4) // 4) + 2  # pages of 4 for two prompts, and not for two whole outputs
    engine = engine_of(model, num_pages=two_begin, token_budget=5, reuse_prefixes=False, host_pages=host_pages)
    names = [engine.add_request(prompt, greedy(new)) for prompt in prompts]
    preempted, found = 0, {}
    while engine.has_work:
        for update in engine.step():
            if update.completion is not None:
                found[update.request] = update.completion.tokens
        assert engine.statistics is not None
        preempted += engine.statistics.step.preempted
    assert preempted > 0
    assert [found[name] for name in names] == [wanted(model, prompt, new).tokens for prompt in prompts]
    check_idle(engine)


def test_text_beside_pictures_and_aborts_among_them():
    model, picture = tiny_vl2(), batch((2, 1))
    engine = engine_of(model, token_budget=7)
    text = [5, 9, 33, 7]
    engine.add_request(picture, greedy(6), id="gone")
    engine.step()
    engine.step()
    engine.abort("gone")
    results = engine.generate([text, picture], greedy(6))
    assert tokens_of(results) == [expected(model, text, 6).tokens, wanted(model, picture).tokens]
    check_idle(engine)


def test_half_precision():
    """bf16 keeps 8 bits: rows and logits agree as far as that."""
    model = tiny_vl2().bfloat16()
    prompts = [batch((1, 2)), batch((1, 1), (2, 1), seed=2)]
    engine = engine_of(model, token_budget=9)
    recorded = record(engine)
    for prompt, result in zip(prompts, engine.generate(prompts, greedy(1)), strict=True):
        prompt = prompt | {"images": prompt["images"].bfloat16()}
        own = wanted(model, prompt, 1)
        torch.testing.assert_close(recorded.drawn[result.request][0], own.logits[0], atol=0.15, rtol=0)


@pytest.mark.slow
def test_the_zoos_model_answers_as_generate_does():
    loaded = modelwright.load(zoo.path("vl2-nano"))
    asked = [
        {"role": "<|User|>", "content": "<image>\nWhich shapes do you see?"},
        {"role": "<|Assistant|>", "content": ""},
    ]
    inputs = dict(loaded.processor(conversations=asked, images=[Image.open(SHAPES)]))
    with torch.inference_mode():
        found = loaded.model.generate(**inputs, max_new_tokens=40, do_sample=False)
    new = tuple(found[0, inputs["input_ids"].shape[1] :].tolist())
    engine = Engine(loaded.model, EngineConfig(max_batch=2, token_budget=64), loaded.tokenizer)
    assert tokens_of(engine.generate([inputs, inputs], greedy(40, min_tokens=0))) == [new, new]
