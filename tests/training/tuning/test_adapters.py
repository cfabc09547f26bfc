"""Adapters on disk: read by peft, read of peft's, continued, merged, served, and loaded by transformers."""

import copy
import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from modelwright.checkpoints.folder import find_checkpoint
from modelwright.configs.run import RunConfig, TunePart
from modelwright.errors import CheckpointError, ConfigError
from modelwright.serving.load import load_network
from modelwright.serving.merge_adapter import merge_adapter
from modelwright.training.checkpoints.export import check_export
from modelwright.training.tuning import load_adapter, lora_of, merge, save_adapter, settle
from modelwright.training.tuning.adapter import shortest
from tests.checkpoints.tiny import write_v2
from tests.fakes import MOE, tiny_vl2
from tests.llamas import HUGGING_FACE, tiny_llama
from tests.training.tuning.tunes import MODELS, Lora, inputs, logits, near, tuned

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # peft's, on patterns


def tensors(folder):
    return load_file(folder / "adapter_model.safetensors")


def config(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", [{}, {"rslora": True, "rank": 3}], ids=["usual", "rslora"])
@pytest.mark.parametrize("format", ["stacked", "official"])
def test_is_read_again_as_it_was(name, how, format, tmp_path):
    model, base = tuned(name, **how)
    given = inputs(name, 2, 9)
    wanted = logits(model, given)
    save_adapter(model, tmp_path, format, base="somewhere")
    again = copy.deepcopy(base)
    load_adapter(again, tmp_path)
    assert near(logits(again, given), wanted, 1e-6)
    for key, pair in lora_of(again).items():
        own = lora_of(model)[key]
        assert pair.rank == own.rank and torch.equal(pair.A, own.A) and torch.equal(pair.B, own.B), key
        assert pair.scale == pytest.approx(own.scale) and pair.rslora == own.rslora
    said = config(tmp_path)
    assert (said["r"], said["lora_alpha"], said["use_rslora"]) == (how.get("rank", 4), 6, "rslora" in how)
    assert said["base_model_name_or_path"] == "somewhere"


@pytest.mark.parametrize("name", MODELS)
def test_peft_reads_ours(name, tmp_path):
    model, base = tuned(name)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    given = inputs(name, 2, 9)
    assert near(logits(theirs, given), logits(model, given), 1e-6)
    theirs.save_pretrained(tmp_path / "again")
    found, wanted = tensors(tmp_path / "again"), tensors(tmp_path)
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("parameters", [["gate_up_proj", "down_proj"], ["down_proj"], ["gate_up_proj"]])
def test_we_read_pefts(parameters, tmp_path):
    base = MODELS["v2"]()
    torch.manual_seed(0)
    how = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["o_proj", "kv_b_proj"],
        target_parameters=[f"experts.{each}" for each in parameters],
        rank_pattern={"kv_b_proj": 2},
        alpha_pattern={r".*\.down_proj": 3},
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(copy.deepcopy(base), how)
    theirs.save_pretrained(tmp_path)
    load_adapter(base, tmp_path)
    given = inputs("v2", 2, 9)
    assert near(logits(base, given), logits(theirs, given), 3e-6)
    save_adapter(base, tmp_path / "again")
    found, wanted = tensors(tmp_path / "again"), tensors(tmp_path)
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_the_packing_of_stacks_is_pefts(tmp_path):
    """In B an expert's columns do not stand together: those of one rank do."""
    model, _ = tuned("v2")
    save_adapter(model, tmp_path)
    saved, pair = tensors(tmp_path), lora_of(model)["model.layers.1.mlp.experts.gate_up_proj"]
    experts, out, rank = pair.B.shape
    stem = "base_model.model.model.layers.1.mlp.experts.base_layer.lora_"
    a, b = saved[f"{stem}A.weight"], saved[f"{stem}B.weight"]
    for expert in range(experts):
        assert torch.equal(a[expert * rank : (expert + 1) * rank], pair.A[expert])
        assert torch.equal(b.reshape(out, rank, experts)[:, :, expert], pair.B[expert])
    assert "base_model.model.model.layers.1.mlp.experts.lora_A.weight" in saved  # of down_proj, the outer wrapper


def test_official_names_are_those_of_each_expert(tmp_path):
    model, base = tuned("v2")
    save_adapter(model, tmp_path, "official")
    saved = tensors(tmp_path)
    layers = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in saved}
    assert layers == {
        name.removesuffix(".weight") for name in base.places() if ".mlp." in name or ".self_attn." in name
        if "norm" not in name and "gate.weight" not in name
    }  # fmt: skip
    pair, stem = (
        lora_of(model)["model.layers.1.mlp.experts.gate_up_proj"],
        "base_model.model.model.layers.1.mlp.experts.5",
    )
    gate, up = (saved[f"{stem}.{part}_proj.lora_B.weight"] for part in ("gate", "up"))
    assert torch.equal(torch.cat([gate, up]), pair.B[5])
    assert torch.equal(saved[f"{stem}.gate_proj.lora_A.weight"], saved[f"{stem}.up_proj.lora_A.weight"])


@pytest.mark.parametrize("format", ["stacked", "official"])
def test_an_adapter_is_continued(format, tmp_path):
    model, base = tuned("v2")
    save_adapter(model, tmp_path, format)
    one, other = copy.deepcopy(base), copy.deepcopy(base)
    settled = settle(one, None, adapter=tmp_path)
    assert {group.part for group in settled.groups} == {"attention", "dense", "experts", "shared"}
    settle(other, TunePart(lora=Lora(dropout=0.5)), adapter=tmp_path)
    assert {pair.dropout for pair in lora_of(other).values()} == {0.5}
    assert near(logits(one, inputs("v2", 2, 9)), logits(model, inputs("v2", 2, 9)), 1e-6)
    with pytest.raises(ConfigError, match=r"asks for rank 8 and scale 0\.75"):
        settle(copy.deepcopy(base), TunePart(lora=Lora(rank=8)), adapter=tmp_path)


def test_layers_that_trained_whole_are_saved_beside(tmp_path):
    base = tiny_vl2()
    model = copy.deepcopy(base)
    settle(model, TunePart(train=("projector", "norms"), lora=Lora(targets=("attention",))))
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(0.05)
    save_adapter(model, tmp_path)
    assert config(tmp_path)["modules_to_save"]
    again = copy.deepcopy(base)
    load_adapter(again, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    given = inputs("vl2", 2, 9)
    assert near(logits(again, given), logits(model, given), 1e-6) and near(
        logits(theirs, given), logits(model, given), 1e-6
    )
    assert torch.equal(again.projector.layers[0].weight, model.projector.layers[0].weight)
    assert torch.equal(
        theirs.get_parameter("base_model.model.projector.layers.0.modules_to_save.default.weight"),
        model.projector.layers[0].weight,
    )
    settled = settle(copy.deepcopy(base), None, adapter=tmp_path)
    assert settled.trains("projector") and settled.trains("norms") and not settled.trains("head")
    settle(model2 := copy.deepcopy(base), TunePart(train=("marks",), lora=Lora(targets=("attention",))))
    with pytest.raises(CheckpointError, match="format merged"):
        save_adapter(model2, tmp_path)
    save_adapter(model2, tmp_path / "merged", "merged")


@pytest.mark.parametrize("name", MODELS)
def test_merged_is_a_whole_folder(name, tmp_path):
    model, base = tuned(name)
    given = inputs(name, 2, 9)
    wanted = logits(model, given)
    names = list(model.state_dict())
    save_adapter(model, tmp_path, "merged")
    assert list(model.state_dict()) == names and torch.equal(logits(model, given), wanted)  # it goes on training
    again = type(base).from_pretrained(tmp_path)
    assert (logits(again, given) - wanted).abs().max() < 2e-5
    assert load_file(tmp_path / "model.safetensors").keys() <= base.places().keys()
    theirs = {"v2": "DeepseekV2ForCausalLM", "llama": "LlamaForCausalLM", "imagegpt": "ImageGPTForCausalImageModeling"}
    if name in theirs:
        loaded = getattr(transformers, theirs[name]).from_pretrained(tmp_path)
        torch.testing.assert_close(logits(loaded, given), wanted, rtol=0, atol=5e-5)


@pytest.mark.parametrize("format", ["stacked", "official"])
def test_the_server_folds_it_in(format, tmp_path):
    folder = write_v2(tmp_path / "base")
    network = load_network(find_checkpoint(folder), dtype="float32", device="cpu").model
    settle(network, TunePart(lora=Lora()))
    torch.manual_seed(0)
    with torch.no_grad():
        for pair in lora_of(network).values():
            pair.B.normal_(std=0.02)
    save_adapter(network, tmp_path / "adapter", format)
    ids = torch.arange(3, 20)[None]
    merged = load_network(
        find_checkpoint(folder).with_adapter(tmp_path / "adapter"), dtype="float32", device="cpu"
    ).model
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, network(ids).logits, rtol=0, atol=2e-5)
        plain = load_network(find_checkpoint(folder), dtype="float32", device="cpu").model
        assert (plain(ids).logits - merged(ids).logits).abs().max() > 1e-3


def test_what_cannot_be_saved_or_read_is_refused(tmp_path):
    model, base = tuned("v2")
    with pytest.raises(ConfigError, match="one of stacked, official, merged"):
        save_adapter(model, tmp_path, "whole")
    with pytest.raises(ConfigError, match="has no LoRA"):
        save_adapter(base, tmp_path)
    save_adapter(model, tmp_path)
    with pytest.raises(CheckpointError, match="which this model has not"):
        load_adapter(MODELS["llama"](), tmp_path)
    with pytest.raises(CheckpointError, match=r"has shape .* and the layer's weight has shape"):
        load_adapter(type(base)(type(base.config)(**MOE | {"moe_intermediate_size": 24})), tmp_path)
    said = config(tmp_path) | {"r": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=r"has rank 4, and .*adapter_config\.json says 8"):
        load_adapter(base, tmp_path)


def test_the_shortest_end_that_means_the_same():
    known = ["a.x.q", "a.y.q", "b.x.k", "b.q.k"]
    assert shortest(["a.x.q", "a.y.q"], known) == ["q"]
    assert shortest(["a.x.q"], known) == ["x.q"]
    assert shortest(["b.x.k"], known) == ["x.k"]
    assert shortest([], known) == []


def tied_llama():
    return tiny_llama(base=HUGGING_FACE | {"tie_word_embeddings": True})


def test_an_embedding_that_trains_beside_lora_stays_tied_to_its_head_in_peft(tmp_path):
    base = tied_llama()
    model = copy.deepcopy(base)
    settle(model, TunePart(lora=Lora(targets=("attention",)), train=("embedding",)))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
        for pair in lora_of(model).values():
            pair.B.normal_(std=0.05)
    save_adapter(model, tmp_path)
    given = inputs("llama", 2, 9)
    wanted = logits(model, given)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert near(logits(theirs, given), wanted, 1e-5)
    again = copy.deepcopy(base)
    load_adapter(again, tmp_path)
    assert near(logits(again, given), wanted, 1e-6)


def test_lora_of_a_tied_head_is_computed_beside_it_and_not_folded_in(tmp_path):
    base = tied_llama()
    theirs = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    )
    theirs.save_pretrained(tmp_path)
    given = inputs("llama", 2, 9)
    ours = copy.deepcopy(base)
    load_adapter(ours, tmp_path)
    assert near(logits(ours, given), logits(theirs, given), 1e-5)
    with pytest.raises(ConfigError, match="one matrix with"):
        merge(ours)


def test_what_is_frozen_beside_an_adapter_keeps_its_pairs_and_does_not_train(tmp_path):
    model, base = tuned("llama")
    save_adapter(model, tmp_path)
    again = copy.deepcopy(base)
    found = settle(again, TunePart(freeze=("attention",)), adapter=tmp_path)
    assert found.parameters and not any("attention" in name or "self_attn" in name for name in found.parameters)
    assert {group.part for group in found.groups} == {"dense"}
    given = inputs("llama", 2, 9)
    assert near(logits(again, given), logits(model, given), 1e-6)
    with pytest.raises(ConfigError, match="nonsense"):
        settle(copy.deepcopy(base), TunePart(freeze=("nonsense",)), adapter=tmp_path)


@pytest.mark.parametrize(("targets", "says"), [(("dense",), "name .*mlp.* no pair"), (("nonsense",), "nonsense")])
def test_targets_beside_an_adapter_must_be_the_adapters(targets, says, tmp_path):
    model, base = tuned("llama", targets=("attention",))
    save_adapter(model, tmp_path)
    with pytest.raises(ConfigError, match=says):
        settle(copy.deepcopy(base), TunePart(lora=Lora(targets=targets)), adapter=tmp_path)
    settle(copy.deepcopy(base), TunePart(lora=Lora(targets=("attention",))), adapter=tmp_path)
    settle(copy.deepcopy(base), TunePart(lora=Lora()), adapter=tmp_path)  # the default says nothing of its own


BIASED = {
    "mindformers fused": (r"\.bias$", "qkv_proj"),
    "imagegpt": (r"attn\..*\.bias$", "c_attn"),
}
"""Models with biases, those that train of them, and a layer that has one and a pair."""


@pytest.mark.parametrize("format", ["stacked", "official"])
@pytest.mark.parametrize("name", BIASED)
def test_biases_that_train_beside_lora_are_saved_as_pefts(name, format, tmp_path):
    """As its ``bias="lora_only"`` does, and not as whole layers, which would be in the adapter twice."""
    names, layer = BIASED[name]
    model, base = tuned(name, train=(names,))
    with torch.no_grad():
        for each, parameter in model.named_parameters():
            if parameter.requires_grad and each.endswith(".bias"):
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(each)))
    save_adapter(model, tmp_path, format)
    assert config(tmp_path)["bias"] == "lora_only" and config(tmp_path)["modules_to_save"] is None
    given = inputs(name, 2, 9)
    wanted = logits(model, given)
    assert not near(logits(base, given), wanted, 1e-2)
    again, merged = copy.deepcopy(base), copy.deepcopy(base)
    load_adapter(again, tmp_path)
    merge_adapter(merged, tmp_path)
    assert near(logits(again, given), wanted, 1e-6) and near(logits(merged, given), wanted, 1e-5)
    assert any(key.endswith(f"{layer}.bias") and each.requires_grad for key, each in again.named_parameters())
    if format == "stacked":
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
        assert near(logits(theirs, given), wanted, 1e-6)
        loaded = copy.deepcopy(base)
        loaded.load_adapter(str(tmp_path))
        assert near(logits(loaded, given), wanted, 1e-6)


def test_biases_of_pefts_are_read(tmp_path):
    """Of its ``bias="all"``: before 0.21 it leaves those of ``lora_only`` out of what it saves."""
    base = MODELS["mindformers fused"]()
    how = peft.LoraConfig(r=2, target_modules=["qkv_proj"], bias="all", init_lora_weights=False)
    theirs = peft.get_peft_model(copy.deepcopy(base), how)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad and parameter.dim() == 1:
                parameter.add_(0.3)
    theirs.save_pretrained(tmp_path)
    given = inputs("mindformers fused", 2, 9)
    for read in (load_adapter, merge_adapter):
        ours = copy.deepcopy(base)
        read(ours, tmp_path)
        assert near(logits(ours, given), logits(theirs, given), 1e-5)


@pytest.mark.parametrize("part", ["norms", "head", "embedding", "gate"])
@pytest.mark.parametrize("name", ["v2", "vl2", "mindformers experts", "imagegpt"])
def test_layers_beside_lora_are_read_on_every_road(name, part, tmp_path):
    """By peft, by transformers' ``load_adapter`` and ``from_pretrained``, and folded in: experts have pairs, too."""
    if (name, part) == ("imagegpt", "gate"):
        part = r"c_attn\.bias"
    model, base = tuned(name, train=(part,))
    with torch.no_grad():
        for each, parameter in model.named_parameters():
            if parameter.requires_grad and ".lora." not in each:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(each))))
    base.save_pretrained(tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    loaded, merged = copy.deepcopy(base), copy.deepcopy(base)
    loaded.load_adapter(str(tmp_path / "adapter"))
    merge_adapter(merged, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter")
    given = inputs(name, 2, 9)
    wanted = logits(model, given)
    for read in (loaded, merged, theirs, type(base).from_pretrained(tmp_path / "adapter")):
        assert near(logits(read, given), wanted, 1e-5)
    assert not near(logits(base, given), wanted, 1e-2)


def test_what_no_adapter_can_hold_is_refused_before_the_run(tmp_path):
    run = {"model": {"config": {}}, "output": str(tmp_path), "steps": 1}
    tune = {"train": ["marks"], "lora": {"targets": ["attention"]}}
    model = tiny_vl2()
    settle(model, RunConfig.of(run | {"tune": tune}).tune)
    with pytest.raises(ConfigError, match=r"not be written .*image_newline.* set tune.lora.format: merged"):
        check_export(model, RunConfig.of(run | {"tune": tune}))
    check_export(model, RunConfig.of(run | {"tune": tune, "checkpoint": {"on_end": "none"}}))
    merged = tune | {"lora": {"targets": ["attention"], "format": "merged"}}
    check_export(model, RunConfig.of(run | {"tune": merged}))


def test_a_model_with_pairs_beside_its_weights_is_no_folder(tmp_path):
    """Whoever read it would find tensors that no model has."""
    model, _ = tuned("llama")
    with pytest.raises(ConfigError, match=r"has LoRA beside its weights.*tuning\.merge"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    merge(model).save_pretrained(tmp_path / "model")
    given = inputs("llama", 2, 9)
    assert near(logits(type(model).from_pretrained(tmp_path / "model"), given), logits(model, given), 1e-6)


def test_pefts_auto_class_reads_ours(tmp_path):
    model, base = tuned("llama")
    base.save_pretrained(tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
    given = inputs("llama", 2, 9)
    assert isinstance(theirs, peft.PeftModelForCausalLM) and near(logits(theirs, given), logits(model, given), 1e-6)


def test_a_tower_that_trains_whole_is_one_layer_of_pefts(tmp_path):
    base = MODELS["vl2"]()
    model = copy.deepcopy(base)
    settle(model, TunePart(lora=Lora(targets=("attention",)), train=("vision",)))
    with torch.no_grad():
        for name, each in model.named_parameters():
            if name.startswith("vision."):
                each.mul_(1.1)
    save_adapter(model, tmp_path)
    saved = config(tmp_path)["modules_to_save"]
    assert not any(one != other and other.startswith(f"{one}.") for one in saved for other in saved)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    found, wanted = dict(theirs.named_parameters()), dict(model.named_parameters())
    copies = {key.replace(".modules_to_save.default", ""): value for key, value in found.items() if "default" in key}
    trained = [name for name in wanted if name.startswith("vision.")]
    assert trained and all(torch.equal(copies[f"base_model.model.{name}"], wanted[name]) for name in trained)
