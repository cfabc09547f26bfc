"""Every field of Llama that shapes, types or weighs something does so: each has a test that fails if it is ignored."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from modelwright.errors import CheckpointError, RequestError
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from modelwright.layers import RMSNorm, Router
from modelwright.layers.rope import rotate_by_matrix, rotate_half_split
from modelwright.ops.cross_entropy import IGNORED
from tests.fakes import tokens
from tests.llamas import EXPERTS, HUGGING_FACE, MINDFORMERS, tiny_llama, with_weights_of

close = torch.testing.assert_close
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
LLAMA3 = {"factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
YARN = {
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "beta_slow": 1,
    "beta_fast": 32,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
}

SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "hidden_size": (64, {}),
    "num_layers": (3, {}),
    "num_heads": (2, {"n_kv_heads": 2, "qkv_has_bias": True}),  # heads as wide as keys are
    "n_kv_heads": (4, {}),
    "intermediate_size": (64, {}),
    "multiple_of": (128, {"intermediate_size": None}),
    "ffn_dim_multiplier": (2.0, {"intermediate_size": None, "multiple_of": 8}),
    "vocab_size": (80, {}),
    "qkv_has_bias": (True, {}),
    "attn_proj_has_bias": (True, {}),
    "qkv_concat": (True, {}),
    "moe_config": (EXPERTS, {}),
}
NUMBERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rms_norm_eps": ({"rms_norm_eps": 0.1}, {}),
    "theta": ({"theta": 100.0}, {}),
    "PI": ({"extend_method": "PI", "scaling_factor": 4.0}, {}),
    "linear": ({"extend_method": "linear", "scaling_factor": {"factor": 4}}, {}),
    "NTK": ({"extend_method": "NTK", "scaling_factor": 4.0}, {}),
    "LLAMA3": ({"extend_method": "LLAMA3", "scaling_factor": LLAMA3}, {}),
    "YARN": ({"extend_method": "YARN", "scaling_factor": YARN}, {}),
    "DYNAMIC_NTK": ({"extend_method": "DYNAMIC_NTK", "is_dynamic": True}, {"max_position_embedding": 8}),
    "compute_dtype": ({"compute_dtype": "bfloat16"}, {}),
    "layernorm_compute_type": ({"layernorm_compute_type": "float16"}, {}),
    "layernorm_compute_type, step by step": ({"layernorm_compute_type": "float16"}, {"fused_rms_norm": False}),
    "softmax_compute_type": ({"softmax_compute_type": "float16"}, {}),
    "rotary_dtype": ({"rotary_dtype": "float16"}, {}),
    "residual_dtype": ({"residual_dtype": "float16"}, {}),
    "fused_rms_norm": ({"fused_rms_norm": False}, {"compute_dtype": "bfloat16"}),
    "param_init_type": ({"param_init_type": "float16"}, {}),
    "embedding_init_type": ({"embedding_init_type": "float16"}, {}),
    "use_eod_attn_mask_compression": ({"use_eod_attn_mask_compression": True, "use_flash_attention": True}, {}),
    "pad_token_id": ({"pad_token_id": 7}, {}),
    "router_dense_type": ({"moe_config": EXPERTS | {"router_dense_type": "bfloat16"}}, {"moe_config": EXPERTS}),
    "norm_topk_prob": ({"moe_config": EXPERTS | {"norm_topk_prob": False}}, {"moe_config": EXPERTS}),
    "routed_scaling_factor": ({"moe_config": EXPERTS | {"routed_scaling_factor": 2.0}}, {"moe_config": EXPERTS}),
    "num_experts_chosen": ({"moe_config": EXPERTS | {"num_experts_chosen": 1}}, {"moe_config": EXPERTS}),
    "topk_method": (
        {"moe_config": EXPERTS | {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}},
        {"moe_config": EXPERTS},
    ),
    "topk_group": (
        {"moe_config": EXPERTS | {"topk_method": "noaux_tc", "n_group": 2, "topk_group": 1}},
        {"moe_config": EXPERTS | {"topk_method": "noaux_tc", "n_group": 2, "topk_group": 2}},
    ),
    "use_gating_sigmoid": ({"moe_config": EXPERTS | {"use_gating_sigmoid": True}}, {"moe_config": EXPERTS}),
}
SAME_NUMBERS: dict[str, dict[str, Any]] = {
    "use_rope_slice": {"use_rope_slice": True},
    "rmsnorm_compute_2d": {"rmsnorm_compute_2d": True},
    "qkv_concat": {"qkv_concat": True, "qkv_has_bias": True, "attn_proj_has_bias": True},
    "use_flash_attention": {"use_flash_attention": True},
    "use_attn_mask_compression": {"use_attn_mask_compression": True},
    "pretraining_tp": {"pretraining_tp": 2},
    "is_dynamic": {"is_dynamic": True},
}


def ids_with(marks: dict[tuple[int, int], int], shape: tuple[int, int] = (2, 24)) -> torch.Tensor:
    ids = tokens(*shape)
    for place, mark in marks.items():
        ids[place] = mark
    return ids


@torch.no_grad()
def logits(model, ids, **kwargs):
    return model(ids, **kwargs).logits.float()


@pytest.mark.parametrize(("name", "value", "base"), [(n, *entry) for n, entry in SHAPES.items()], ids=list(SHAPES))
def test_it_changes_the_weights(name, value, base):
    def shapes(fields):
        model = LlamaForCausalLM(LlamaConfig(**MINDFORMERS | base | fields))
        return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}

    assert shapes({name: value}) != shapes({})


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("fields", "base"), NUMBERS.values(), ids=list(NUMBERS))
def test_it_changes_the_logits_of_the_same_weights(fields, base):
    plain = tiny_llama(**base)
    for norm in plain.modules():
        if isinstance(norm, RMSNorm):
            torch.nn.init.normal_(norm.weight, 1.0, 0.2)
    other = with_weights_of(plain, **fields)
    ids = ids_with({(0, 9): 2, (1, 4): 7})
    assert not torch.equal(logits(plain, ids), logits(other, ids))


@pytest.mark.parametrize("fields", SAME_NUMBERS.values(), ids=list(SAME_NUMBERS))
def test_it_leaves_the_logits_of_the_same_weights(fields):
    biases = {key: fields[key] for key in ("qkv_has_bias", "attn_proj_has_bias") if key in fields}
    plain = tiny_llama(**biases)
    for name, parameter in plain.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    other, ids = with_weights_of(plain, **fields), tokens(2, 24)
    close(logits(other, ids), logits(plain, ids), atol=1e-5, rtol=1e-5)


def seen_types(model, ids) -> dict[str, torch.dtype]:
    """The type of every module's (first) result."""
    seen: dict[str, torch.dtype] = {}

    def watch(name):
        def hook(_, __, output):
            first = output[0] if isinstance(output, tuple) else output
            seen[name] = getattr(first, "dtype", seen.get(name, FULL))

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(watch(name))
    model(ids)
    return seen


def test_weights_are_stored_as_their_fields_say():
    types: dict[str, Any] = {
        "param_init_type": "bfloat16",
        "embedding_init_type": "float16",
        "layernorm_compute_type": "float32",
    }
    model = tiny_llama(**types, moe_config=EXPERTS | {"router_dense_type": "float16"})
    for name, parameter in model.named_parameters():
        wanted = FULL if "norm" in name else HALF if "embed" in name or "gate.weight" in name else BRAIN
        assert parameter.dtype == wanted, name


def test_every_product_runs_in_compute_dtype():
    model = tiny_llama(compute_dtype="bfloat16", residual_dtype="float32", layernorm_compute_type="float16")
    types = seen_types(model, tokens(1, 5))
    assert types.pop("model.embed_tokens") == FULL
    assert all(types[name] == BRAIN for name in types if "norm" in name or "proj" in name or "layers." in name)
    assert types["lm_head"] == BRAIN


def test_the_default_is_half_precision_and_runs_here():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(dialect="mindformers"))
    assert model.lm_head.weight.dtype == HALF
    assert sum(parameter.numel() for parameter in model.parameters()) == 6738415616
    small = {key: value for key, value in MINDFORMERS.items() if "type" not in key}
    assert logits(tiny_llama(base=small), tokens(1, 5)).isfinite().all()


def test_the_stream_between_layers_is_rounded_to_residual_dtype():
    model = tiny_llama(residual_dtype="float16")
    states = model(tokens(1, 9), output_hidden_states=True).hidden_states
    assert torch.equal(states[1], states[1].half().float())
    assert states[1].dtype == FULL  # and cast straight back
    assert not torch.equal(states[0], states[0].half().float())


def test_softmax_compute_type_says_nothing_where_a_kernel_attends():
    model = tiny_llama(use_flash_attention=True)
    assert torch.equal(
        *(logits(m, tokens(1, 9)) for m in (model, with_weights_of(model, softmax_compute_type="float16")))
    )


def test_use_flash_attention_picks_the_kernel(monkeypatch):
    called = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: called.append(1) or kernel(*a, **k))
    with torch.no_grad():
        tiny_llama(use_flash_attention=False)(tokens(1, 5))
        assert not called
        tiny_llama(use_flash_attention=True)(tokens(1, 5))
    assert len(called) == 2


def test_fused_rms_norm_picks_the_order():
    assert [norm.fused for norm in tiny_llama().modules() if isinstance(norm, RMSNorm)] == [True] * 5
    assert not any(norm.fused for norm in tiny_llama(base=HUGGING_FACE).modules() if isinstance(norm, RMSNorm))


def test_use_rope_slice_picks_the_rotation():
    assert tiny_llama(use_rope_slice=True).model.rotary.rotate is rotate_half_split
    assert tiny_llama(use_rope_slice=False).model.rotary.rotate is rotate_by_matrix


@pytest.mark.parametrize("flat", [False, True])
def test_rmsnorm_compute_2d_flattens_tokens_between_attentions(flat):
    model, shapes = tiny_llama(rmsnorm_compute_2d=flat), []
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    states = model(tokens(2, 5), output_hidden_states=True).hidden_states
    assert set(shapes) == ({(10, 32)} if flat else {(2, 5, 32)})
    assert {state.shape for state in states} == {(2, 5, 32)}


def test_new_weights_spread_as_init_method_std_says():
    model = tiny_llama(init_method_std=0.05, hidden_size=64, qkv_has_bias=True, qkv_concat=True)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name))), name


def test_return_hidden_states_adds_the_last_normed_one():
    assert tiny_llama()(tokens(1, 5)).last_hidden_state is None
    model = tiny_llama(return_hidden_states=True)
    result = model(tokens(1, 5))
    close(model.lm_head(result.last_hidden_state), result.logits)


def test_a_tied_head_is_the_embedding():
    model = tiny_llama(tie_word_embeddings=True, embedding_init_type="float16")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == HALF
    assert logits(model, tokens(1, 5)).isfinite().all()


@pytest.mark.parametrize("cls", [LlamaForCausalLM, LlamaModel, LlamaForSequenceClassification])
def test_checkpoint_name_or_path_is_loaded_where_a_model_is_built_from_its_config(cls, tmp_path):
    saved = tiny_llama(qkv_concat=True, seed=3)
    saved.save_pretrained(tmp_path)
    built = cls.from_config(LlamaConfig(**MINDFORMERS, checkpoint_name_or_path=str(tmp_path)))
    found = built.state_dict() | {f"model.{name}": tensor for name, tensor in built.state_dict().items()}
    assert torch.equal(found["model.layers.1.mlp.up_proj.weight"], saved.model.layers[1].mlp.gate_up_proj.weight[1::2])
    nowhere = LlamaConfig(**MINDFORMERS, checkpoint_name_or_path="/nowhere")
    with pytest.raises(CheckpointError, match='checkpoint_name_or_path "/nowhere" must name an existing folder'):
        cls.from_config(nowhere)
    with torch.device("meta"):
        cls.from_config(nowhere)  # there is nothing to fill
    cls(nowhere)  # a constructor reads no file


# Masks


def test_pad_tokens_are_no_keys():
    model, ids = tiny_llama(), ids_with({(0, 3): 0, (0, 4): 0, (1, 0): 0})
    for flash in (False, True):
        other = with_weights_of(model, use_flash_attention=flash)
        close(logits(other, ids), logits(other, ids, attention_mask=(ids != 0).long()))
        plain = logits(with_weights_of(other, pad_token_id=-1), ids)
        assert (logits(other, ids)[0, 5:] - plain[0, 5:]).abs().max() > 1e-3
        close(logits(other, ids)[0, :3], plain[0, :3])


def test_pad_tokens_are_no_keys_after_a_past_either():
    model, ids = tiny_llama(), ids_with({(0, 20): 0})
    cache = model(ids[:, :16]).past_key_values
    close(logits(model, ids[:, 16:], past_key_values=cache), logits(model, ids)[:, 16:], atol=1e-5, rtol=1e-5)


def test_a_mask_that_is_given_decides_alone():
    model, ids = tiny_llama(), ids_with({(0, 3): 0})
    assert torch.equal(
        logits(model, ids, attention_mask=torch.ones_like(ids)), logits(with_weights_of(model, pad_token_id=-1), ids)
    )


def test_mask_compression_attends_purely_causally():
    model, ids = tiny_llama(use_attn_mask_compression=True), ids_with({(0, 3): 0})
    close(logits(model, ids), logits(with_weights_of(model, use_attn_mask_compression=False, pad_token_id=-1), ids))
    late = torch.ones_like(ids)
    late[1, 20:] = 0
    close(logits(model, ids, attention_mask=late), logits(model, ids))
    early = late.clone()
    early[0, 1:3] = 0
    with pytest.raises(RequestError, match="padding must follow all real tokens: attention_mask has 2 zeros before a"):
        model(ids, attention_mask=early)


PACKED: dict[str, Any] = {"use_eod_attn_mask_compression": True, "use_flash_attention": True}


@pytest.mark.parametrize("ends", [2, [2, 3]], ids=str)
@pytest.mark.parametrize("reset", [False, True])
def test_packed_documents_are_as_if_alone(reset, ends):
    model = tiny_llama(**PACKED, reset_position_ids=reset, eos_token_id=ends)
    ids = tokens(1, 20).clamp(min=5)
    ids[0, 6], ids[0, 13] = 2, 3
    bounds = [0, 7, 14, 20] if isinstance(ends, list) else [0, 7, 20]
    found = logits(model, ids)
    for start, stop in pairwise(bounds):
        alone = ids[:, start:stop]
        positions = None if reset else torch.arange(start, stop)[None]
        close(found[:, start:stop], logits(model, alone, position_ids=positions), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reset", [False, True])
def test_packed_documents_stay_apart_while_decoding(reset):
    model = tiny_llama(**PACKED, reset_position_ids=reset)
    ids = ids_with({(0, 6): 2, (1, 3): 2, (1, 4): 2})
    plan = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    by_hand = ids
    for _ in range(6):
        by_hand = torch.cat((by_hand, model(by_hand).logits[:, -1:].argmax(-1)), dim=1)
    for cache in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(ids, **plan, **cache), by_hand)


def test_packed_documents_need_their_tokens():
    model = tiny_llama(**PACKED)
    with pytest.raises(RequestError, match="finds documents by their eos tokens: it needs input_ids, got none"):
        model(inputs_embeds=model.get_input_embeddings()(tokens(1, 5)))


# Loss


def summed(model, ids, labels, keep):
    nll = F.cross_entropy(logits(model, ids)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return nll.view(keep.shape).mul(keep).sum()


def test_the_loss_counts_what_its_fields_say():
    ids = ids_with({(0, 4): 0, (1, 7): 9})
    model = tiny_llama(ignore_token_id=9)
    keep = (ids[:, :-1] != 0) & (ids[:, 1:] != 9)
    close(model(ids, labels=ids).loss, summed(model, ids, ids, keep) / keep.sum())
    everything = with_weights_of(model, ignore_token_id=-100, pad_token_id=-1)
    close(everything(ids, labels=ids).loss, summed(everything, ids, ids, torch.ones_like(keep)) / keep.numel())


def test_input_sliced_sig_takes_labels_as_aligned():
    model = tiny_llama(input_sliced_sig=True)
    ids = tokens(2, 9)
    shifted = with_weights_of(model, input_sliced_sig=False)
    close(model(ids[:, :-1], labels=ids[:, 1:]).loss, shifted(ids, labels=ids).loss)
    assert not torch.allclose(model(ids, labels=ids).loss, shifted(ids, labels=ids).loss)


def test_calculate_per_token_loss_divides_by_the_global_count():
    model, ids = tiny_llama(), ids_with({(0, 20): 0})
    per_token = with_weights_of(model, calculate_per_token_loss=True)
    counted = (ids[:, :-1] != 0).sum()
    mean = model(ids, labels=ids, num_items_in_batch=100).loss
    close(per_token(ids, labels=ids, num_items_in_batch=100).loss, mean * counted / 100)
    close(per_token(ids, labels=ids).loss, mean)  # alone it is the whole
    assert (model.accepts_loss_kwargs, per_token.accepts_loss_kwargs) == (False, True)


def test_a_batch_without_labels_that_count_has_no_loss():
    ids = tokens(1, 5)
    assert tiny_llama()(ids, labels=torch.full_like(ids, -100)).loss == 0
    assert IGNORED == -100


# Experts


def losses(**moe):
    model = tiny_llama(moe_config=EXPERTS | moe).train()
    result = model(tokens(2, 9), labels=tokens(2, 9))
    return result.aux_loss, result.loss


def test_each_balance_loss_is_weighed_and_added():
    one, loss = losses(aux_loss_factor=0.1)
    twice, _ = losses(aux_loss_factor=0.2)
    close(twice, 2 * one)
    listed, _ = losses(aux_loss_types=["expert"], aux_loss_factors=[0.1])
    close(listed, one)
    devices, _ = losses(aux_loss_types=["expert", "device"], aux_loss_factors=[0.1, 0.1], expert_group_size=2)
    assert devices > one
    finest, _ = losses(aux_loss_types=["device"], aux_loss_factors=[0.1], expert_group_size=4)
    close(finest, one)  # a group of one is an expert
    alone, _ = losses(aux_loss_types=["comm"], aux_loss_factors=[0.1])
    close(alone, torch.tensor(0.2))  # one rank has all the load of each of the two layers
    with_z, _ = losses(aux_loss_factor=0.1, z_loss_factor=0.01)
    assert with_z > one
    model = tiny_llama(moe_config=EXPERTS | {"aux_loss_factor": 0.1})
    close(loss - one, model(tokens(2, 9), labels=tokens(2, 9)).loss)


def test_the_z_loss_by_hand():
    model, seen = tiny_llama(moe_config=EXPERTS | {"z_loss_factor": 0.5, "aux_loss_factor": 1e-9}).train(), []
    for router in model.modules():
        if isinstance(router, Router):
            router.register_forward_hook(lambda _, __, routing: seen.append(routing.logits))
    found = model(tokens(2, 9)).loss, model(tokens(2, 9), labels=tokens(2, 9)).aux_loss
    wanted = 0.5 * sum(each.logsumexp(-1).square().mean() for each in seen[2:])
    close(found[1], wanted, atol=1e-6, rtol=1e-6)


def test_capacity_drops_tokens_in_training_only():
    crowded = {"use_gmm": False, "capacity_factor": 0.5}
    model = tiny_llama(moe_config=EXPERTS | crowded)
    free = with_weights_of(model, moe_config=EXPERTS | {"use_gmm": False, "capacity_factor": 0.0})
    grouped = with_weights_of(model, moe_config=EXPERTS | crowded | {"use_gmm": True})
    by_token = with_weights_of(model, moe_config=EXPERTS | crowded | {"enable_sdrop": True})
    ids = tokens(2, 24)
    close(logits(model, ids), logits(free, ids))
    dropped, whole, also_whole, other = (logits(m.train(), ids) for m in (model, free, grouped, by_token))
    assert not torch.allclose(dropped, whole)
    assert not torch.allclose(dropped, other)
    close(whole, also_whole)


def test_shared_experts_and_their_gate():
    plain = tiny_llama(moe_config=EXPERTS)
    shared = tiny_llama(moe_config=EXPERTS | {"shared_expert_num": 2})
    assert shared.model.layers[0].block_sparse_moe.shared_experts.up_proj.weight.shape == (96, 32)
    shared.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.allclose(logits(plain, tokens(1, 5)), logits(shared, tokens(1, 5)))
    gated = tiny_llama(moe_config=EXPERTS | {"shared_expert_num": 2, "use_shared_expert_gating": True})
    gated.load_state_dict(shared.state_dict(), strict=False)
    torch.nn.init.constant_(gated.model.layers[0].block_sparse_moe.shared_expert_gate.weight, 0.0)
    x = torch.randn(3, 32)
    routed = plain.model.layers[0].block_sparse_moe(x)
    full, half = (m.model.layers[0].block_sparse_moe(x) for m in (shared, gated))
    close(half - routed, (full - routed) / 2)


def test_topk_bias_moves_by_its_rate_and_steers():
    steered = EXPERTS | {"balance_via_topk_bias": True, "topk_bias_update_rate": 0.25}
    model = tiny_llama(moe_config=steered).train()
    model(tokens(2, 9))
    gate = model.model.layers[0].block_sparse_moe.gate
    model.update_router_bias()
    assert gate.e_score_correction_bias.abs().max() == 0.25
    before = logits(model.eval(), tokens(2, 9))
    gate.e_score_correction_bias[2] = 100.0
    assert not torch.allclose(before, logits(model, tokens(2, 9)))
    assert "model.layers.0.block_sparse_moe.gate.e_score_correction_bias" in model.places()
    unmoved = tiny_llama(moe_config=EXPERTS | {"topk_method": "noaux_tc", "n_group": 2, "topk_group": 1})
    assert not any("bias" in name for name in unmoved.places())
