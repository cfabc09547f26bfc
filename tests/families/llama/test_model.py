"""Llama as a model: its files, types on loading, adapters, training runs, checkpointing, and what it refuses."""

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import modelwright
from modelwright.errors import CheckpointError, ConfigError, RequestError
from modelwright.families.llama.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from tests.fakes import official_weights, recompute_layers, tokens
from tests.llamas import EXPERTS, HUGGING_FACE, MINDFORMERS, tiny_llama, with_weights_of
from tests.trainers import losses_of, make_trainer

close = torch.testing.assert_close
KINDS = {
    "dense": {},
    "fused": {"qkv_concat": True, "qkv_has_bias": True, "attn_proj_has_bias": True},
    "tied": {"tie_word_embeddings": True},
    "typed": {"param_init_type": "bfloat16", "embedding_init_type": "float32", "compute_dtype": "float16"},
    "experts": {"moe_config": EXPERTS | {"shared_expert_num": 1, "use_shared_expert_gating": True}},
    "steered": {"moe_config": EXPERTS | {"balance_via_topk_bias": True, "router_dense_type": "bfloat16"}},
}


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def model(request):
    return tiny_llama(**request.param)


@torch.no_grad()
def logits(model, ids, **kwargs):
    return model(ids, **kwargs).logits.float()


def test_saving_and_loading_keeps_every_tensor_and_its_type(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    saved = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "_name_or_path": str(tmp_path)}
    assert again.config.to_dict() == saved
    for name, tensor in model.state_dict().items():
        assert again.state_dict()[name].dtype == tensor.dtype, name
        assert torch.equal(again.state_dict()[name], tensor), name


def test_files_are_laid_out_as_hugging_face_does(tmp_path):
    fused = tiny_llama(**KINDS["fused"])
    fused.save_pretrained(tmp_path / "fused")
    names = {name.split(".", 3)[-1] for name in load_file(tmp_path / "fused" / "model.safetensors") if ".0." in name}
    projections = {f"self_attn.{x}_proj.{kind}" for x in "qkvo" for kind in ("weight", "bias")}
    assert names == projections | {f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")} | {
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    }
    apart = LlamaForCausalLM.from_pretrained(tmp_path / "fused", qkv_concat=False)
    close(logits(apart, tokens(2, 9)), logits(fused, tokens(2, 9)), atol=1e-5, rtol=1e-5)
    tiny_llama(**KINDS["steered"]).save_pretrained(tmp_path / "experts")
    names = {name.split(".", 3)[-1] for name in load_file(tmp_path / "experts" / "model.safetensors") if "moe" in name}
    experts = {f"block_sparse_moe.experts.{e}.w{i}.weight" for e in range(4) for i in (1, 2, 3)}
    gate = {"block_sparse_moe.gate.weight", "block_sparse_moe.gate.e_score_correction_bias"}
    assert names == experts | gate


def test_the_fused_layout_is_mindformers(tmp_path):
    """``w_qkv`` holds each key head's queries, key and value in turn; ``w_gate_hidden`` gate and up rows in turn."""
    model = tiny_llama(**KINDS["fused"])
    layer, official = model.model.layers[0], official_weights(model)
    q, k, v = (official[f"model.layers.0.self_attn.{x}_proj.weight"] for x in "qkv")
    rows = layer.self_attn.qkv_proj.weight
    assert torch.equal(rows[:32], torch.cat((q[:16], k[:8], v[:8])))
    assert torch.equal(rows[32:], torch.cat((q[16:], k[8:], v[8:])))
    gate, up = (official[f"model.layers.0.mlp.{x}_proj.weight"] for x in ("gate", "up"))
    assert torch.equal(layer.mlp.gate_up_proj.weight[:4], torch.stack((gate[0], up[0], gate[1], up[1])))


def test_experts_are_a_mixtral(tmp_path):
    """transformers' Mixtral reads our experts and agrees."""
    ours = tiny_llama(moe_config=EXPERTS, rms_norm_eps=1e-5, pad_token_id=-1)
    config = transformers.MixtralConfig(
        **HUGGING_FACE | {"architectures": ["MixtralForCausalLM"], "rms_norm_eps": 1e-5},
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    ours.save_pretrained(tmp_path)
    theirs = transformers.MixtralForCausalLM.from_pretrained(tmp_path, config=config)
    close(logits(ours, tokens(2, 9)), logits(theirs, tokens(2, 9)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype_overrides_what_the_config_says(dtype, tmp_path):
    tiny_llama(base=HUGGING_FACE).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{name}"}
    config = model.config
    assert (config.param_init_type, config.compute_dtype, config.rotary_dtype) == (name, name, name)
    assert logits(model, tokens(1, 5)).isfinite().all()
    with pytest.raises(
        ConfigError, match="dtype must be auto or one of float64, float32, float16, bfloat16; got 'int3'"
    ):
        LlamaForCausalLM.from_pretrained(tmp_path, dtype="int3")


def test_a_model_that_was_moved_to_another_type_is_saved_as_it_is(tmp_path):
    model = tiny_llama(base=HUGGING_FACE).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert again.config.param_init_type == "bfloat16"
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing lm_head.weight"):
        LlamaForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=False)


def test_the_front_door_and_the_registry(tmp_path):
    assert modelwright.LlamaForCausalLM is LlamaForCausalLM
    tiny_llama(LlamaForSequenceClassification, num_labels=3).save_pretrained(tmp_path)
    loaded = modelwright.LlamaForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.score.weight.shape == (3, 32)


def test_embeddings_for_ids_and_hidden_states(model):
    ids = tokens(2, 5)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(logits(model, None, inputs_embeds=embeds), logits(model, ids))
    with pytest.raises(RequestError, match="give input_ids or inputs_embeds, and not both"):
        model(ids, inputs_embeds=embeds)
    bare = model.model(ids, output_hidden_states=True, return_dict=False)
    assert torch.equal(bare[0], model.model(ids).last_hidden_state)


def test_a_cache_continues_where_it_stopped(model):
    ids = tokens(2, 9)
    cache = model(ids[:, :6]).past_key_values
    atol = 1e-5 if model.config.compute_dtype == "float32" else 2e-2
    close(logits(model, ids[:, 6:], past_key_values=cache), logits(model, ids)[:, 6:], atol=atol, rtol=1e-5)


def test_unknown_arguments_and_attention_weights_are_refused():
    with pytest.raises(TypeError, match="did you mean attention_mask"):
        tiny_llama(LlamaModel)(tokens(1, 5), atention_mask=torch.ones(1, 5))
    with pytest.raises(RequestError, match="attention weights are never written out"):
        tiny_llama()(tokens(1, 5), output_attentions=True)
    with pytest.raises(RequestError, match="labels need the logits of every token"):
        tiny_llama()(tokens(1, 5), labels=tokens(1, 5), logits_to_keep=1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(model, reentrant):
    if model.config.compute_dtype != "float32":
        model = with_weights_of(model, compute_dtype="float32")
    ids, gradients = tokens(2, 9), []
    for again in (False, True):
        if again:
            recompute_layers(model, {"use_reentrant": reentrant})
        model.zero_grad()
        model.train()(ids, labels=ids, use_cache=not again).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, wanted in gradients[0].items():
        close(gradients[1][name], wanted)


@pytest.mark.parametrize("kind", ["dense", "fused", "typed"])
def test_lora_trains_and_merges(kind):
    model = tiny_llama(**KINDS[kind])
    fused = kind == "fused"
    targets = ["qkv_proj", "gate_up_proj"] if fused else ["q_proj", "v_proj", "up_proj"]
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=[*targets, "o_proj"], task_type="CAUSAL_LM")
    )
    before = {name: p.detach().clone() for name, p in adapted.named_parameters() if "lora" not in name}
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    ids, losses = tokens(2, 12), []
    for _ in range(6):
        loss = adapted.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, wanted in before.items():
        assert torch.equal(adapted.get_parameter(name), wanted), name
    wanted = logits(adapted.eval(), ids)
    merged = adapted.merge_and_unload()
    assert isinstance(merged, LlamaForCausalLM)
    atol = 1e-4 if kind != "typed" else 0.1  # merged into bfloat16 weights
    close(logits(merged, ids), wanted, atol=atol, rtol=1e-4)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("fields", [HUGGING_FACE, MINDFORMERS, MINDFORMERS | KINDS["experts"]], ids=["hf", "mf", "moe"])
def test_ten_steps_of_transformers_trainer_lower_the_loss(fields, tmp_path):
    how = {"batch": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2}
    losses = losses_of(make_trainer(tiny_llama(base=fields), tmp_path, 10, **how))
    assert len(losses) == 10
    assert losses[-1] < 0.8 * losses[0]
    assert 3.5 < losses[0] < 8  # a mean over tokens, however micro-batches are weighed
