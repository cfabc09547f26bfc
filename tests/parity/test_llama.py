"""transformers' own Llama on the same weights: logits, gradients, loss, generation, and files across both ways."""

import pytest
import torch
import transformers

from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from modelwright.ops.backends import cpu as kernels
from tests.fakes import tokens
from tests.llamas import HUGGING_FACE, ROPES, left_padded, pair

CASES = {name: {"rope_parameters": rope | {"rope_theta": 1000.0}} for name, rope in ROPES.items()} | {
    "every head its keys": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "biased": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "older rope_scaling": {"rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "default epsilon": {"rms_norm_eps": 1e-2},
}
PLAN = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}


def close(found, wanted, atol=1e-5):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0)


@torch.no_grad()
def logits(model, *args, **kwargs):
    return model(*args, **kwargs).logits


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_logits_within_and_beyond_the_trained_context(fields):
    ours, theirs = pair(**fields, max_position_embeddings=32)
    for length in (9, 50):
        close(logits(ours, tokens(2, length)), logits(theirs, tokens(2, length)))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(side, implementation):
    ours, theirs = pair(attn_implementation=implementation)
    ids, mask = tokens(3, 12), left_padded(tokens(3, 12), [12, 7, 1])
    mask = mask if side == "left" else mask.flip(-1)
    found, wanted = (logits(model, ids, attention_mask=mask) for model in (ours, theirs))
    close(found[mask.bool()], wanted[mask.bool()])


@pytest.mark.one_in(4)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_low_precision_is_theirs_bit_for_bit(rope, implementation, dtype, tmp_path, monkeypatch):
    """Where the processor has products of the type; where it lacks them, ours in fp32 are no further from the truth."""
    _, theirs = pair(rope_parameters=rope | {"rope_theta": 1000.0}, max_position_embeddings=32)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.mul_(1.1 if "norm" in name else 1.0)
    theirs.save_pretrained(tmp_path)
    how = {"dtype": dtype, "attn_implementation": implementation}
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, **how)
    ours = LlamaForCausalLM.from_pretrained(tmp_path, **how)
    ids = tokens(2, 40)
    exact = logits(transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), ids)
    off = [float((logits(model, ids).float() - exact).norm()) for model in (ours, theirs)]
    assert off[0] <= 1.05 * off[1]  # kernels, whose sums are wider, are no further from what is meant
    assert (
        float((ours(ids).logits.detach().float() - exact).norm()) <= 1.05 * off[1]
    )  # where gradients may be asked for
    monkeypatch.setattr(kernels, "serves_trained_attention", lambda *_: False)
    for lacks in (True, False):
        monkeypatch.setattr(kernels, "torch_lacks", lambda _, lacks=lacks: lacks)
        found = ours(ids).logits  # torch attends
        assert float((found.detach().float() - exact).norm()) <= 1.05 * off[1]
        assert lacks or torch.equal(found, theirs(ids).logits)


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_files_load_across_both_ways(fields, tmp_path):
    ours, theirs = pair(**fields)
    ours.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    read, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    close(logits(read, tokens(2, 40)), logits(theirs, tokens(2, 40)))
    theirs.save_pretrained(tmp_path / "theirs")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "theirs")
    close(logits(again, tokens(2, 40)), logits(ours, tokens(2, 40)), atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_and_saving_changes_no_tensor_nor_its_type(dtype, tmp_path):
    _, theirs = pair()
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    LlamaForCausalLM.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("theirs", "ours"))
    assert len(first) == len(second)
    read = LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    assert {str(p.dtype) for p in read.parameters()} == {f"torch.{dtype}"}
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name


@pytest.mark.parametrize("fields", [CASES["default"], CASES["dynamic"], CASES["llama3"]], ids=str)
@pytest.mark.parametrize(
    "plan",
    [
        {"do_sample": False},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "cache_implementation": "static"},
        {"do_sample": False, "repetition_penalty": 1.5},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "temperature": 1.5, "top_k": 7, "top_p": 0.9},
    ],
    ids=str,
)
def test_generation(plan, fields):
    found = []
    for model in pair(**fields, max_position_embeddings=16):
        torch.manual_seed(5)
        found.append(model.generate(tokens(2, 12), **PLAN, **plan))
    assert torch.equal(*found)


@pytest.mark.parametrize("plan", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_generation_from_a_padded_batch(plan):
    ids, mask = tokens(3, 9), left_padded(tokens(3, 9), [9, 5, 1])
    found = [model.generate(ids, attention_mask=mask, do_sample=False, **PLAN, **plan) for model in pair()]
    assert torch.equal(*found)


@pytest.mark.parametrize("num_items", [None, 100])
@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True, "attention_bias": True}], ids=str)
def test_loss_and_every_gradient(fields, num_items):
    ours, theirs = pair(**fields)
    ids, mask = tokens(2, 12), left_padded(tokens(2, 12), [12, 7]).flip(-1)
    labels = ids.masked_fill(mask == 0, -100)
    gradients = []
    for model in (ours.train(), theirs.train()):
        loss = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=num_items).loss
        loss.backward()
        gradients.append({"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[1].items():
        close(gradients[0][name], wanted)


def test_hidden_states_and_the_bare_decoder():
    ours, theirs = pair(LlamaModel)
    found, wanted = (model(tokens(2, 9), output_hidden_states=True) for model in (ours, theirs))
    close(found.last_hidden_state, wanted.last_hidden_state)
    assert len(found.hidden_states) == len(wanted.hidden_states) == 3
    for a, b in zip(found.hidden_states, wanted.hidden_states, strict=True):
        close(a, b)


@pytest.mark.parametrize("masked", [False, True])
def test_a_padding_id_that_ends_sentences_too(masked):
    ours, theirs = pair(pad_token_id=2)
    ids = tokens(2, 12)
    ids[0, 4] = ids[1, 7] = ids[1, 8] = 2
    mask = torch.ones_like(ids) if masked else None
    found, wanted = (model(ids, attention_mask=mask, labels=ids) for model in (ours, theirs))
    close(found.logits, wanted.logits)
    close(found.loss, wanted.loss)
    plan = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    for how in ({}, {"num_beams": 3}, {"cache_implementation": "static"}):
        assert torch.equal(*(model.generate(ids, attention_mask=mask, **plan, **how) for model in (ours, theirs)))
    scored = pair(LlamaForSequenceClassification, num_labels=3, pad_token_id=2)
    ids[1, 10:] = 2
    close(*(logits(model, ids, attention_mask=mask) for model in scored))


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_sequence_classification(problem):
    labels = 1 if problem == "regression" else 3
    ours, theirs = pair(LlamaForSequenceClassification, num_labels=labels, problem_type=problem, pad_token_id=0)
    ids = tokens(2, 9)
    ids[1, 6:] = 0
    wanted = {
        "single_label_classification": torch.tensor([2, 0]),
        "multi_label_classification": torch.tensor([[1.0, 0, 1], [0, 1, 0]]),
        "regression": torch.tensor([0.5, -1.0]),
    }[problem]
    a, b = (model(ids, attention_mask=(ids != 0).long(), labels=wanted) for model in (ours, theirs))
    close(a.logits, b.logits)
    close(a.loss, b.loss)


def test_a_config_of_theirs_reads_as_ours_and_back(tmp_path):
    transformers.LlamaConfig(**HUGGING_FACE, attention_bias=True).save_pretrained(tmp_path)
    ours = LlamaConfig.from_pretrained(tmp_path)
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.LlamaConfig.from_pretrained(tmp_path / "ours")
    assert {name: getattr(theirs, name) for name in HUGGING_FACE} == HUGGING_FACE
    assert theirs.attention_bias is True
