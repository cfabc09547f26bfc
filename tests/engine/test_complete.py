"""Completing pictures through the engine: against `generate`, by frequencies and by seeds, and what it refuses."""

import itertools

import peft
import pytest
import torch

from modelwright.engine.complete import complete
from modelwright.errors import ConfigError, RequestError
from tests.imagegpts import colours, tiny_imagegpt

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


def uneven(model):
    """The same model with biases and norms that all differ."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3, mean=1.0 if "ln_" in name else 0.0)
    return model


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_greedily_it_is_generate(kind):
    model = uneven(tiny_imagegpt(**kind))
    for given, new in ((1, 24), (5, 20), (24, 1)):
        ids = colours(2, given)
        steps: list[int] = []
        found = complete(model, ids, new, temperature=0, on_token=steps.append)
        assert torch.equal(found, greedy(model, ids, new))
        assert steps == list(range(1, new + 1))


@pytest.mark.slow
def test_frequencies_are_the_models_probabilities():
    """Of the first colour, and of the second after each first one, in rows that one seed draws apart."""
    model = tiny_imagegpt()
    rows = complete(model, torch.full((2000, 1), 16), 2, seed=0)
    first = rows[:, 1].bincount(minlength=16) / 2000
    with torch.no_grad():
        wanted = model(torch.tensor([[16]])).logits[0, 0].softmax(-1)
        after = model(torch.stack([torch.full((16,), 16), torch.arange(16)], dim=1)).logits[:, 1].softmax(-1)
    assert (first - wanted).abs().max() < 0.045  # four standard deviations of a share near one half
    assert (rows[:, 2].bincount(minlength=16) / 2000 - wanted @ after).abs().max() < 0.045


@pytest.mark.slow
def test_temperature_top_k_and_top_p_keep_the_best():
    model = tiny_imagegpt()
    with torch.no_grad():
        scores = model(torch.tensor([[16]])).logits[0, 0]
    order = scores.argsort(descending=True).tolist()

    def drawn(**how) -> set[int]:
        return set(complete(model, torch.full((1000, 1), 16), 1, seed=4, **how)[:, 1].tolist())

    cumulated = scores.softmax(-1)[order].cumsum(-1)
    assert drawn(temperature=0) == drawn(top_k=1) == drawn(temperature=1e-4) == {order[0]}
    assert drawn(top_k=3, temperature=3.0) == set(order[:3])
    assert drawn(top_p=float(cumulated[3]) - 1e-3, temperature=1.0) <= set(order[:4])


def test_a_top_k_of_minus_one_keeps_all_as_zero_does():
    model, ids = tiny_imagegpt(), torch.full((50, 1), 16)
    by_one, by_other = (complete(model, ids, 2, seed=4, top_k=k, temperature=3.0) for k in (-1, 0))
    assert by_one.tolist() == by_other.tolist()


def test_a_seed_repeats_and_leaves_torchs_own_numbers_alone():
    model, ids = tiny_imagegpt(), colours(2, 3)
    state = torch.get_rng_state()
    rows = [complete(model, ids, 15, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(rows[0][:, :3], ids)
    alike = complete(model, ids[:1].expand(3, -1), 15, seed=1)
    assert len({tuple(row) for row in alike.tolist()}) == 3  # equal rows are continued differently


def test_an_adapter_keeps_its_effect():
    ids = colours(2, 4)
    plain = tiny_imagegpt()
    without = complete(plain, ids, 12, temperature=0)
    adapted = peft.get_peft_model(
        plain, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    ).eval()
    inner = adapted.get_base_model()
    found = complete(inner, ids, 12, temperature=0)
    assert torch.equal(found, greedy(inner, ids, 12))
    assert not torch.equal(found, without)


def test_weights_are_read_anew_each_time():
    model, ids = uneven(tiny_imagegpt()), colours(1, 3)
    complete(model, ids, 12, temperature=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(9))
    assert torch.equal(complete(model, ids, 12, temperature=0), greedy(model, ids, 12))


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
        ({"temperature": -1}, "temperature must be at least 0, got -1.0"),
        ({"top_k": -2}, "top_k must be at least -1, got -2"),
        ({"top_p": 1.5}, "top_p must be from 0 to 1, got 1.5"),
        ({"new_tokens": -1}, "new_tokens (-1) must be at least 0"),
        ({"input_ids": torch.zeros(3, dtype=torch.long)}, f"{SHAPE}, got [3]"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, f"{SHAPE}, got [2, 0]"),
        ({"new_tokens": 23}, "3 given and 23 new tokens are 26; the model's context holds 25"),
        (
            {"input_ids": torch.full((1, 1), 17)},
            "a prompt's tokens must be at least 0 and below the vocabulary's 17, got 17",
        ),
        (
            {"input_ids": torch.full((1, 2), -1)},
            "a prompt's tokens must be at least 0 and below the vocabulary's 17, got -1",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(arguments, message):
    with pytest.raises(RequestError) as caught:
        complete(tiny_imagegpt(), **{"input_ids": colours(2, 3), "new_tokens": 2} | arguments)
    assert str(caught.value) == message


def test_a_model_in_training_is_refused():
    with pytest.raises(ConfigError, match="a model in evaluation mode"):
        complete(tiny_imagegpt().train(), colours(1, 3), 2)


@pytest.mark.parametrize("how", [{"temperature": 1e-40}, {"temperature": 9e-6}, {"top_p": 0.0}])
def test_what_is_next_to_no_heat_takes_the_best(how):
    model, ids = tiny_imagegpt(), colours(2, 5)
    assert torch.equal(complete(model, ids, 12, **how), greedy(model, ids, 12))
