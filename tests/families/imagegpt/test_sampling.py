"""Completing pictures: the lean decoder against whole passes, `complete` against `generate`, and what it refuses."""

import itertools

import peft
import pytest
import torch

from modelwright.errors import RequestError
from modelwright.families.imagegpt import decode as decode
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling
from modelwright.families.imagegpt.sampling import choose, complete
from modelwright.ops.limits import Limits
from tests.imagegpts import colours, tiny_imagegpt, with_weights_of

SCALES = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
KINDS = {
    "".join("ny"[value] for value in values): dict(zip(SCALES, values, strict=True))
    for values in itertools.product([True, False], repeat=3)
} | {
    "narrow": {"n_inner": 7},
    "tied": {"tie_word_embeddings": True},
    "prelu": {"activation_function": "prelu"},
    "one layer, one head": {"n_layer": 1, "n_head": 1, "layer_norm_epsilon": 0.3},
}


def greedy(model, ids, new):
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def model(request):
    model = tiny_imagegpt(**request.param)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3, mean=1.0 if "ln_" in name else 0.0)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("given", [1, 4])
@pytest.mark.parametrize("compiled", [True, False])
def test_each_step_has_the_logits_of_a_whole_pass(given, compiled, model, monkeypatch):
    if not compiled:
        monkeypatch.setattr(decode.kernels, "serves_rows", lambda *tensors: False)
    ids = colours(3, 12)
    assert decode.is_plain(model)
    feed = decode.LeanDecoder(model, batch=3, slots=12)
    fed = [feed(ids[:, :given])] + [feed(ids[:, t : t + 1]) for t in range(given, 12)]
    wanted = model(ids).logits[:, given - 1 :]
    torch.testing.assert_close(torch.stack(fed, dim=1), wanted, atol=1e-5, rtol=0)


def test_greedily_it_is_generate(model):
    for given, new in ((1, 24), (5, 20), (24, 1)):
        ids = colours(2, given)
        steps: list[int] = []
        found = complete(model, ids, new, temperature=0, on_token=steps.append)
        assert torch.equal(found, greedy(model, ids, new))
        assert steps == list(range(1, new + 1))


def test_it_samples_what_generate_does_with_the_same_random_numbers():
    model, ids = tiny_imagegpt(), torch.full((3, 1), 16)
    torch.manual_seed(5)
    wanted = model.generate(ids, do_sample=True, max_new_tokens=20, temperature=1.7, top_k=6, top_p=0.8)
    torch.manual_seed(5)
    assert torch.equal(complete(model, ids, 20, temperature=1.7, top_k=6, top_p=0.8), wanted)


def test_frequencies_are_the_models_probabilities():
    model = tiny_imagegpt()
    start = torch.full((4000, 1), 16)
    with torch.no_grad():
        wanted = model(start[:1]).logits[0, 0].softmax(-1)
    found = complete(model, start, 1, generator=torch.Generator().manual_seed(0))[:, 1].bincount(minlength=16) / 4000
    assert (found - wanted).abs().max() < 0.03  # 3.8 standard deviations of a share near one half


def test_a_generator_repeats_and_leaves_torchs_own_alone():
    model, ids = tiny_imagegpt(), colours(2, 3)
    state = torch.get_rng_state()
    rows = [complete(model, ids, 15, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(rows[0][:, :3], ids)


def test_top_k_and_top_p_keep_the_best():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(2000, 1)
    generator = torch.Generator().manual_seed(0)

    def chosen(**how):
        plan = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | how
        limits = Limits.of([(plan["top_k"], plan["top_p"], 0.0)] * len(logits))
        return set(choose(logits, plan["temperature"], limits, generator)[:, 0].tolist())

    assert chosen() == {0, 1, 2, 3}
    assert chosen(top_k=2) == {0, 1}
    assert chosen(top_k=9) == {0, 1, 2, 3}
    assert chosen(top_p=0.4) == {0}
    assert chosen(top_p=0.6) == {0, 1}
    assert chosen(top_k=3, top_p=0.9) == {0, 1, 2}
    assert chosen(temperature=0) == {0}
    assert chosen(temperature=0.01) == {0}


def test_a_model_that_is_more_than_its_weights_is_run_itself():
    ids = colours(2, 4)
    adapted = peft.get_peft_model(
        tiny_imagegpt(), peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    ).eval()
    inner = adapted.get_base_model()
    assert not decode.is_plain(inner)
    assert torch.equal(complete(inner, ids, 12, temperature=0), greedy(inner, ids, 12))
    mixed = tiny_imagegpt()
    mixed.transformer.h[0].double()
    assert not decode.is_plain(mixed)
    with torch.autocast("cpu"):
        assert not decode.is_plain(tiny_imagegpt())
        assert complete(tiny_imagegpt(), ids, 3).shape == (2, 7)
    with torch.device("meta"):
        assert not decode.is_plain(tiny_imagegpt())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("upcast", [False, True])
@torch.inference_mode()
def test_other_types_are_as_close_as_their_rounding(dtype, upcast):
    model, ids = tiny_imagegpt(reorder_and_upcast_attn=upcast), colours(2, 9)
    wanted = model(ids).logits[:, -1]
    feed = decode.LeanDecoder(model.to(dtype), batch=2, slots=9)
    for token in ids.split(1, dim=1):
        found = feed(token)
    assert found.dtype == dtype
    tolerance = {torch.bfloat16: 0.06, torch.float16: 0.01, torch.float64: 1e-5}[dtype]
    assert (found - wanted).abs().max() < tolerance * wanted.std()


def test_the_result_can_be_trained_on():
    model = tiny_imagegpt()
    rows = complete(model, colours(1, 3), 5)
    model(rows, labels=rows).loss.backward()
    assert model.lm_head.weight.grad is not None


def test_nothing_new_gives_back_what_was_given():
    ids = colours(2, 3)
    found = complete(tiny_imagegpt(), ids, 0)
    assert torch.equal(found, ids)
    assert found.data_ptr() != ids.data_ptr()


SHAPE = "input_ids must be [batch, tokens] with at least one of each"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1}, "temperature (-1) must be at least 0"),
        ({"top_k": -2}, "top_k (-2) must be at least 0"),
        ({"top_p": 0.0}, "top_p (0.0) must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p (1.5) must be above 0 and at most 1"),
        ({"new_tokens": -1}, "new_tokens (-1) must be at least 0"),
        ({"input_ids": torch.zeros(3, dtype=torch.long)}, f"{SHAPE}, got [3]"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, f"{SHAPE}, got [2, 0]"),
        ({"new_tokens": 23}, "3 given and 23 new tokens need 25 positions (the last is never read); n_positions is 24"),
        ({"input_ids": torch.full((1, 1), 17)}, "input_ids must be at least 0 and below vocab_size (17), got 17"),
        ({"input_ids": torch.full((1, 2), -1)}, "input_ids must be at least 0 and below vocab_size (17), got -1"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments, message):
    with pytest.raises(RequestError) as caught:
        complete(tiny_imagegpt(), **{"input_ids": colours(2, 3), "new_tokens": 2} | arguments)
    assert str(caught.value) == message


def test_a_model_in_training_is_refused():
    with pytest.raises(RequestError, match="must be in evaluation mode"):
        complete(tiny_imagegpt().train(), colours(1, 3), 2)


def test_weights_are_read_anew_each_time():
    model, ids = tiny_imagegpt(), colours(1, 3)
    other = with_weights_of(model)
    assert isinstance(other, ImageGPTForCausalImageModeling)
    first = complete(model, ids, 12, temperature=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(9))
    assert torch.equal(complete(other, ids, 12, temperature=0), first)
    assert torch.equal(complete(model, ids, 12, temperature=0), greedy(model, ids, 12))
