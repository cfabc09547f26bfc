"""transformers' generate() on every class that decodes: strategies, padding, caches, and pictures in the prompt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.utils import logging

from modelwright.errors import RequestError, RequestFailed
from modelwright.hf.offload import OffloadedCache
from modelwright.layers.balance import steered_routers
from tests.fakes import MHA, MOE, NOAUX, recompute_layers, tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama

GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
TEXT = {"latent": MOE, "mha": MHA, "noaux": NOAUX}
close = torch.testing.assert_close


@pytest.fixture(params=TEXT.values(), ids=TEXT)
def model(request):
    return tiny_v2(base=request.param)


@pytest.fixture(params=[MOE, MHA], ids=["latent", "mha"])
def vl2(request):
    return tiny_vl2(language=request.param)


def greedy_by_hand(model, ids, steps):
    for _ in range(steps):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    return ids


def left_padded(ids, lengths):
    mask = torch.zeros_like(ids)
    for i, length in enumerate(lengths):
        mask[i, -length:] = 1
    return mask


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_greedy_is_the_best_token_of_each_full_pass(cache, model):
    found = model.generate(tokens(2, 5), max_new_tokens=6, **GREEDY, **cache)
    assert torch.equal(found, greedy_by_hand(model, tokens(2, 5), 6))


@pytest.mark.parametrize("plan", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_a_left_padded_batch_decodes_each_row_as_alone(plan, model):
    ids, lengths = tokens(3, 7), [7, 4, 1]
    plan = GREEDY | plan | {"max_new_tokens": 5}
    found = model.generate(ids, attention_mask=left_padded(ids, lengths), **plan)
    for i, length in enumerate(lengths):
        assert torch.equal(found[i, -5:], model.generate(ids[i : i + 1, -length:], **plan)[0, -5:])


def test_sampling_repeats_with_its_seed(model):
    def sample(seed):
        torch.manual_seed(seed)
        return model.generate(tokens(1, 4), max_new_tokens=20, **GREEDY | {"do_sample": True, "temperature": 2.0})

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_beams_find_what_an_exhaustive_search_finds():
    model = tiny_v2(vocab_size=8)
    ids = tokens(1, 3, vocab=8)
    pairs = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    scores = model(torch.cat((ids.expand(64, -1), pairs), dim=1)).logits.log_softmax(-1)
    total = scores[:, 2].gather(1, pairs[:, :1]) + scores[:, 3].gather(1, pairs[:, 1:])
    found = model.generate(ids, num_beams=8, max_new_tokens=2, **GREEDY)
    assert torch.equal(found[0, 3:], pairs[total[:, 0].argmax()])


def test_it_stops_at_any_of_several_ends(model):
    plain = model.generate(tokens(1, 4), max_new_tokens=8, **GREEDY)[0, 4:]
    stop = int(plain[3])
    found = model.generate(tokens(1, 4), max_new_tokens=8, **GREEDY | {"eos_token_id": [stop, 1]})[0, 4:]
    first = plain.tolist().index(stop)
    assert torch.equal(found, plain[: first + 1])


def test_embeddings_as_prompt(model):
    embeds = model.get_input_embeddings()(tokens(2, 5))
    found = model.generate(inputs_embeds=embeds, max_new_tokens=5, **GREEDY)
    assert torch.equal(found, model.generate(tokens(2, 5), max_new_tokens=5, **GREEDY)[:, 5:])


def test_it_continues_from_a_cache(model):
    ids, cache = tokens(1, 9), DynamicCache()
    model(ids[:, :6], past_key_values=cache)
    found = model.generate(ids, past_key_values=cache, max_new_tokens=5, **GREEDY)
    assert torch.equal(found, model.generate(ids, max_new_tokens=5, **GREEDY))


@pytest.mark.one_in(4)
@pytest.mark.usefixtures("generate_may_warn")
@pytest.mark.parametrize("how", ["a smaller model", "itself", "an early exit", "the prompt"])
def test_drafts_leave_the_greedy_text(how, model):
    ids, cache = tokens(1, 6).repeat(1, 3), DynamicCache()
    plan = {
        "a smaller model": {"assistant_model": tiny_v2(seed=1, num_hidden_layers=1)},
        "itself": {"assistant_model": model},
        "an early exit": {"assistant_early_exit": 1},
        "the prompt": {"prompt_lookup_num_tokens": 3},
    }[how]
    found = model.generate(ids, past_key_values=cache, max_new_tokens=9, **plan, **GREEDY)
    assert torch.equal(found, model.generate(ids, max_new_tokens=9, **GREEDY))
    assert model.config.num_hidden_layers == 2
    assert cache.get_seq_length() == ids.shape[1] + 8


def test_pages_of_transformers_are_refused_and_leave_the_model_as_it_was(model):
    wanted = model.generate(tokens(2, 4), max_new_tokens=4, **GREEDY)
    with pytest.raises(RequestError, match=r"needs its own attention: use modelwright\.Engine"):
        model.generate(tokens(2, 4), cache_implementation="paged", max_new_tokens=4, **GREEDY)
    assert torch.equal(model.generate(tokens(2, 4), max_new_tokens=4, **GREEDY), wanted)


def test_a_misspelt_argument_is_refused(model):
    with pytest.raises(ValueError, match="atention_mask"):
        model.generate(tokens(1, 4), atention_mask=torch.ones(1, 4), max_new_tokens=4)


def test_scores_and_hidden_states_come_along(model):
    plan = GREEDY | {"return_dict_in_generate": True, "output_logits": True, "output_hidden_states": True}
    found = model.generate(tokens(1, 4), max_new_tokens=3, **plan)
    assert [step.argmax(-1).item() for step in found.logits] == found.sequences[0, 4:].tolist()
    assert [tuple(step[-1].shape) for step in found.hidden_states] == [(1, 4, 32), (1, 1, 32), (1, 1, 32)]


@pytest.mark.parametrize(("base", "numbers"), [(MOE, 16 + 8), (MHA, 2 * 2 * 8)], ids=["latent", "mha"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_holds_no_more_than_the_config_says(base, numbers, dtype):
    model = tiny_v2(base=base).to(dtype)
    cache = DynamicCache()
    model.generate(tokens(2, 6), past_key_values=cache, max_new_tokens=5, **GREEDY)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    cached = 2 * (6 + 4)  # rows x tokens; the last one is never fed back
    assert model.config.kv_numbers_per_token == numbers
    assert held == cached * model.config.num_hidden_layers * numbers * dtype.itemsize


# Pictures


def test_greedy_with_pictures_is_the_best_token_of_each_full_pass(vl2):
    inputs = vl2_inputs([[(1, 1), (2, 1)]])
    found = vl2.generate(**inputs, max_new_tokens=4, **GREEDY)
    length = inputs["input_ids"].shape[1]
    for _ in range(4):
        best = vl2(**inputs).logits[:, -1:].argmax(-1)
        more = {"input_ids": best, "attention_mask": torch.ones_like(best), "images_seq_mask": best.bool() & False}
        inputs |= {name: torch.cat((inputs[name], part), dim=1) for name, part in more.items()}
    assert torch.equal(found[:, length:], inputs["input_ids"][:, length:])


PICTURED = {
    "in parts": {"prefill_chunk_size": 7},
    "in parts within a picture": {"prefill_chunk_size": 1},
    "no cache": {"use_cache": False},
    "drafts of the prompt": {"prompt_lookup_num_tokens": 3},
    "an early exit": {"assistant_early_exit": 1},
    "another model": {"assistant_model": tiny_vl2(seed=1)},
    "both": {"prefill_chunk_size": 11, "prompt_lookup_num_tokens": 2},
}


@pytest.mark.one_in(4)
@pytest.mark.usefixtures("generate_may_warn")
@pytest.mark.parametrize("plan", PICTURED.values(), ids=PICTURED)
def test_pictures_are_seen_whichever_way_the_prompt_comes(plan, vl2):
    inputs = vl2_inputs([[(1, 1), (2, 1)]])
    wanted = vl2.generate(**inputs, max_new_tokens=6, **GREEDY)
    assert torch.equal(vl2.generate(**inputs, max_new_tokens=6, **GREEDY, **plan), wanted)
    blind = inputs | {"images": torch.zeros_like(inputs["images"])}
    assert not torch.equal(vl2.generate(**blind, max_new_tokens=6, **GREEDY), wanted)


@pytest.mark.parametrize(
    "plan",
    [{}, {"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}, {"prefill_chunk_size": 5}],
    ids=str,
)
def test_rows_with_and_without_pictures_decode_as_alone(plan, vl2):
    rows = [[(1, 2)], [], [(1, 1), (1, 1)]]
    inputs = vl2_inputs(rows)
    found = vl2.generate(**inputs, max_new_tokens=4, **GREEDY, **plan)
    for i in range(3):
        own = inputs["attention_mask"][i].bool()
        alone = {name: part[i : i + 1] for name, part in inputs.items()}
        alone |= {name: alone[name][:, own] for name in ("input_ids", "attention_mask", "images_seq_mask")}
        assert torch.equal(found[i, -4:], vl2.generate(**alone, max_new_tokens=4, **GREEDY, **plan)[0, -4:])


@pytest.mark.parametrize("seen", ["the first turn", "all but the end"])
def test_a_conversation_continues_from_the_cache_of_its_first_turn(seen, vl2):
    inputs = vl2_inputs([[(1, 1), (2, 1)]])
    whole = vl2.generate(**inputs, max_new_tokens=4, **GREEDY)
    second = inputs["images_seq_mask"][0].nonzero()[-1].item() - 5  # inside the second picture
    end = second if seen == "the first turn" else inputs["input_ids"].shape[1] - 1
    embeds, cache = vl2.prepare_inputs_embeds(**inputs)[:, :end], DynamicCache()
    vl2(inputs_embeds=embeds, past_key_values=cache)
    assert torch.equal(vl2.generate(**inputs, past_key_values=cache, max_new_tokens=4, **GREEDY), whole)


# Incremental prefilling


def prefilled(model, inputs, **options):
    embeds, cache = model.incremental_prefilling(**inputs, **options)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    return model.generate(**text, inputs_embeds=embeds, past_key_values=cache, max_new_tokens=4, **GREEDY), cache


@settings(max_examples=8)
@given(
    chunk=st.integers(1, 60),
    rows=st.lists(st.lists(st.sampled_from([(1, 1), (2, 1)]), max_size=2), min_size=1, max_size=2),
    mha=st.booleans(),
    offload=st.booleans(),
)
def test_any_chunk_size_equals_the_whole_prefill(chunk, rows, mha, offload):
    model = tiny_vl2(language=MHA if mha else {})
    inputs = vl2_inputs(rows, words=4)
    embeds, cache = model.incremental_prefilling(**inputs, chunk_size=chunk, offload=offload)
    whole = DynamicCache()
    model(**inputs, past_key_values=whole)
    real = inputs["attention_mask"][:, :-1].bool()
    with torch.no_grad():  # as the prefill was: with gradients other kernels compute
        assert torch.equal(embeds, model.prepare_inputs_embeds(**inputs))
    for part, full in zip(cache.layers, whole.layers, strict=True):
        for found, wanted in ((part.keys, full.keys[:, :, :-1]), (part.values, full.values[:, :, :-1])):
            kept = real[:, None].expand(wanted.shape[:3])
            close(found[kept], wanted[kept], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_generate_continues_from_a_prefill(chunk, offload, vl2):
    inputs = vl2_inputs([[(1, 1)], [(2, 1), (1, 1)]])
    found, cache = prefilled(vl2, inputs, chunk_size=chunk, offload=offload)
    plain = vl2.generate(**inputs, max_new_tokens=4, **GREEDY)
    assert torch.equal(found[:, -4:], plain[:, -4:])
    assert isinstance(cache, OffloadedCache) == offload
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 3


def test_a_prefill_without_a_mask_and_of_text_alone(vl2):
    found, _ = prefilled(vl2, {"input_ids": tokens(2, 11)}, chunk_size=3)
    assert torch.equal(found[:, -4:], vl2.generate(tokens(2, 11), max_new_tokens=4, **GREEDY)[:, -4:])


def test_a_prefill_of_one_token(vl2):
    found, _ = prefilled(vl2, {"input_ids": tokens(1, 1)}, chunk_size=3)
    assert torch.equal(found[:, -4:], vl2.generate(tokens(1, 1), max_new_tokens=4, **GREEDY)[:, -4:])


def test_a_prefill_of_embeddings(vl2):
    inputs = vl2_inputs([[(1, 1)]])
    embeds = vl2.prepare_inputs_embeds(**inputs)
    same, cache = vl2.incremental_prefilling(inputs_embeds=embeds, chunk_size=5)
    assert same is embeds
    assert cache.get_seq_length() == embeds.shape[1] - 1


def test_no_chunk_is_larger_than_asked_for_and_no_logits_are_computed(vl2):
    seen, inputs = [], vl2_inputs([[(2, 1)]])
    vl2.language.model.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    vl2.language.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("logits of a prefill are never needed"))
    vl2.incremental_prefilling(**inputs, chunk_size=7)
    assert max(seen) == 7
    assert sum(seen) == inputs["input_ids"].shape[1] - 1


def test_a_prefill_refuses_what_it_cannot_do(vl2):
    with pytest.raises(RequestError, match=r"chunk_size \(0\) must be at least 1"):
        vl2.incremental_prefilling(tokens(1, 4), chunk_size=0)
    with pytest.raises(RequestError, match=r"attention_mask has shape \[1, 3\] and must have \[1, 4\]"):
        vl2.incremental_prefilling(tokens(1, 4), attention_mask=torch.ones(1, 3))
    with pytest.raises(RequestError, match="give input_ids or inputs_embeds, and not both"):
        vl2.incremental_prefilling()


# The offloaded cache


class CountingCache(OffloadedCache):
    """Counts the tokens that move, in all layers together."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.out = self.back = 0

    def move(self, source, target, start, stop):
        comes_back = any(target is here for here in self.fetched.values())
        self.back += (stop - start) * comes_back
        self.out += (stop - start) * (not comes_back)
        super().move(source, target, start, stop)


def test_only_new_entries_leave_the_device():
    model, ids, cache = tiny_v2(), tokens(1, 12), CountingCache()
    layers, past = model.config.num_hidden_layers, 0
    for chunk in ids.split(5, dim=1):
        before = cache.out, cache.back
        model(ids[:, past : past + chunk.shape[1]], past_key_values=cache)
        assert cache.out - before[0] == layers * chunk.shape[1]
        assert cache.back - before[1] == layers * past
        past += chunk.shape[1]
        assert not cache.fetched


def test_a_long_offloaded_cache_is_that_of_plain_passes_after_crops_too():
    model, ids = tiny_v2(), tokens(2, 60)
    plain, moved = DynamicCache(), OffloadedCache(torch.device("cpu"))
    with torch.no_grad():
        for start, stop, dropped in ((0, 7, 0), (7, 37, 9), (28, 29, 0), (29, 60, 1)):
            for cache in (plain, moved):
                model(ids[:, start:stop], past_key_values=cache)
                cache.crop(-dropped)
            for part, full in zip(moved.layers, plain.layers, strict=True):
                assert torch.equal(part.keys, full.keys) and torch.equal(part.values, full.values)
    assert moved.get_seq_length() == 59


@pytest.mark.parametrize("base", [MOE, MHA], ids=["latent", "mha"])
def test_beams_continue_from_an_offloaded_prefill(base):
    model, ids = tiny_v2(base=base), tokens(2, 9)
    plan = GREEDY | {"num_beams": 3, "max_new_tokens": 6}
    cache = CountingCache()
    for chunk in ids[:, :8].split(3, dim=1):
        model(chunk, past_key_values=cache)
    cache.batch_repeat_interleave(3)
    assert torch.equal(model.generate(ids, past_key_values=cache, **plan), model.generate(ids, **plan))


@pytest.mark.parametrize("how", [GREEDY, GREEDY | {"num_beams": 2}, GREEDY | {"do_sample": True}])
def test_scores_that_overflow_raise_with_the_type_and_the_way_out(how):
    model = tiny_v2(base=MHA).half()
    with torch.no_grad():
        model.lm_head.weight.fill_(6e4)
        model.model.norm.weight.fill_(6e4)
    sentence = r"the model's scores of the next token are (NaN|infinite) in float16.* load it in bfloat16 or float32"
    with pytest.raises(RequestFailed, match=sentence):
        model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3, **how)


TRAINED = {
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "mindformers": tiny_llama,
    "latent": lambda: tiny_v2(base=NOAUX),
    "heads": lambda: tiny_v2(base=MHA),
    "pictures": tiny_vl2,
    "imagegpt": lambda: tiny_imagegpt(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0),
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "plan", [{}, {"use_cache": False}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str
)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("build", TRAINED.values(), ids=TRAINED)
def test_a_model_in_training_that_recomputes_layers_generates_as_in_evaluation(build, reentrant, plan):
    model, ids = build(), tokens(2, 5, vocab=16)
    wanted = model.generate(ids, max_new_tokens=6, **GREEDY, **plan)
    recompute_layers(model.train(), {"use_reentrant": reentrant})
    assert torch.equal(model.generate(ids, max_new_tokens=6, **GREEDY, **plan), wanted)
    assert all(router.load.sum() == 0 for router in steered_routers(model))  # nothing was learned of these tokens


@pytest.mark.parametrize("build", TRAINED.values(), ids=TRAINED)
def test_a_training_pass_that_recomputes_layers_says_that_it_keeps_no_cache(build, caplog):
    logging.get_logger("modelwright").warning_once.cache_clear()
    model = build().train()
    recompute_layers(model)
    with caplog.at_level("WARNING"):
        assert model(tokens(1, 4, vocab=16), use_cache=False).past_key_values is None
        assert not caplog.messages
        assert model(tokens(1, 4, vocab=16), use_cache=True).past_key_values is None
    assert "use_cache=True is incompatible with gradient checkpointing: this pass keeps no cache" in caplog.messages
