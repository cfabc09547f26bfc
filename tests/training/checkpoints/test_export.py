"""Checkpoints of runs as folders that others load: every family, types, layouts, adapters, what was frozen."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from modelwright import load
from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.configs.run import RunConfig
from modelwright.engine.engine import Engine
from modelwright.errors import CheckpointError, ConfigError
from modelwright.processing.templates import turn_ends
from modelwright.serving.published import published_sampling
from modelwright.training.checkpoints import Checkpoints, Saved
from modelwright.training.checkpoints.export import export, write_official
from modelwright.training.seeds import draw_first_weights
from modelwright.training.tuning import load_adapter, merge, settle
from tests.checkpoints.tiny import write_v2, write_vl2
from tests.engine.small_tokenizers import byte_tokenizer
from tests.imagegpts import tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama
from tests.training.checkpoints.states import Part

LORA = {"lora": {"rank": 2, "alpha": 4}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """A folder of each family."""
    folder = tmp_path_factory.mktemp("sources")
    noaux = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "n_group": 2, "topk_group": 1}
    tiny_llama(base=HUGGING_FACE).save_pretrained(folder / "llama")
    tiny_imagegpt().save_pretrained(folder / "imagegpt")
    return {
        "v2": write_v2(folder / "v2", **noaux),
        "vl2": write_vl2(folder / "vl2"),
        "llama": folder / "llama",
        "imagegpt": folder / "imagegpt",
    }


def trained(model: Any, run: RunConfig, folder: Path) -> tuple[Saved, dict[str, torch.Tensor]]:
    """A checkpoint of ``model`` after a run in which all that trains has moved, and its weights then."""
    tuned = settle(model, run.tune, seed=run.seed)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
        moved = {f"model.{name}": parameter for name, parameter in tuned.parameters.items()}
        for name, tensor in model.state_dict().items():
            if name.endswith("e_score_correction_bias") and tuned.trains("gate"):
                tensor.add_(torch.rand_like(tensor))
                moved[f"model.{name}"] = tensor
    rest = {f"optimizer.{name}.exp_avg": torch.zeros(2) for name in moved}
    with Checkpoints(folder, Part()) as checkpoints:
        checkpoints.save(3, moved | rest, {}, run.to_dict())
    return Saved.at(folder / "step-000003"), {name: tensor.clone() for name, tensor in model.state_dict().items()}


def run_of(source: Path | None = None, **values: Any) -> RunConfig:
    model = values.pop("model", {}) | ({} if source is None else {"path": str(source)})
    return RunConfig.of({"model": model, "output": "runs/x", "steps": 3} | values)


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def read(folder: Path) -> Any:
    return find_checkpoint(folder).model_class.from_pretrained(folder, dtype="auto")


@pytest.mark.parametrize("family", ["v2", "vl2", "llama", "imagegpt"])
def test_every_family_is_read_again_with_what_it_learnt(sources, tmp_path, family):
    source = sources[family]
    run = run_of(source)
    model = read(source)
    saved, wanted = trained(model, run, tmp_path / "checkpoints")
    assert export(saved, tmp_path / "out", source=source) == "model"
    same(read(tmp_path / "out").state_dict(), wanted)
    names = {path.name for path in source.iterdir()}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    for name in names & {"tokenizer.json", "processor_config.json", "generation_config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize("said", [{"eos_token_id": 5, "top_k": 7}, {"eos_token_id": [5, 6]}, None])
def test_transformers_ends_what_was_exported_where_the_template_ends_a_turn(tmp_path, said):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    turn, end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<end>"])
    model = tiny_llama(base=HUGGING_FACE | {"vocab_size": len(tokenizer), "eos_token_id": 5})
    source, prompt = tmp_path / "source", torch.tensor([[1, 2, 3]])
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    (source / "generation_config.json").unlink()
    if said is not None:
        (source / "generation_config.json").write_text(json.dumps(said))
    with torch.no_grad():  # as if it had learnt to end its turn at once
        model.lm_head.weight[turn] = 100 * model.model(prompt).last_hidden_state[0, -1]
    write_official(model, tmp_path / "out", source)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert theirs.generate(prompt, max_new_tokens=4, do_sample=False)[0, 3:].tolist() == [turn]
    ends = [*([5, 6] if said and said["eos_token_id"] == [5, 6] else [5]), end, turn]
    assert theirs.generation_config.eos_token_id == ends
    assert published_sampling(tmp_path / "out") == published_sampling(source)  # {"top_k": 7}, or nothing
    engine = Engine(read(source), tokenizer=tokenizer, ends=turn_ends(tokenizer, None))
    assert list(engine.ends) == ends


def test_a_frozen_part_is_taken_from_where_the_run_had_it(sources, tmp_path):
    """The tower of VL2 is in no checkpoint, unless it trains."""
    run = run_of(sources["vl2"], tune={"freeze": ["vision", "embedding"]})
    saved, wanted = trained(read(sources["vl2"]), run, tmp_path / "checkpoints")
    export(saved, tmp_path / "out", source=sources["vl2"])
    same(read(tmp_path / "out").state_dict(), wanted)
    with pytest.raises(CheckpointError, match=r"began with .*, which is needed"):
        export(saved, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_type_is_chosen_and_what_steers_routers_stays(sources, tmp_path):
    saved, wanted = trained(read(sources["v2"]), run_of(sources["v2"]), tmp_path / "checkpoints")
    export(saved, tmp_path / "out", source=sources["v2"], dtype="bfloat16", max_shard_size="20KB")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    found = read(tmp_path / "out").state_dict()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor if name.endswith("_bias") else tensor.bfloat16()), name


def test_a_run_from_nothing_needs_no_source(tmp_path):
    model = tiny_llama(base=HUGGING_FACE | EXPERTS)
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    saved, wanted = trained(model, run_of(model={"config": config}), tmp_path / "checkpoints")
    export(saved, tmp_path / "out")
    same(read(tmp_path / "out").state_dict(), wanted)


def test_what_was_drawn_and_frozen_is_drawn_again(tmp_path, sources):
    """In no checkpoint either: the seed and the names say what it was."""
    config = tiny_llama(base=HUGGING_FACE).config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    run = run_of(model={"config": config, "init": 5}, tune={"freeze": ["embedding"]})
    model = tiny_llama(base=HUGGING_FACE)
    draw_first_weights(model, 5)
    saved, wanted = trained(model, run, tmp_path / "checkpoints")
    export(saved, tmp_path / "out", processor=sources["v2"])
    same(read(tmp_path / "out").state_dict(), wanted)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_the_layout_of_mindformers(sources, tmp_path):
    saved, wanted = trained(read(sources["llama"]), run_of(sources["llama"]), tmp_path / "checkpoints")
    export(saved, tmp_path / "out", source=sources["llama"], to="mindformers")
    convert(tmp_path / "out", tmp_path / "back", to="hf")
    same(read(tmp_path / "back").state_dict(), wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "checkpoints", "out"]


@pytest.mark.parametrize("format", ["stacked", "official"])
@pytest.mark.parametrize("family", ["v2", "llama"])
def test_an_adapter_gives_the_same_logits_on_the_base(sources, tmp_path, family, format):
    model = read(sources[family])
    saved, _ = trained(model, run_of(sources[family], tune=LORA), tmp_path / "checkpoints")
    assert export(saved, tmp_path / "out", source=sources[family], format=format) == "adapter"
    base = read(sources[family])
    load_adapter(base, tmp_path / "out")
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        wanted, found = model.eval()(input_ids=ids).logits, base.eval()(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_merged_adapter_is_a_plain_model(sources, tmp_path):
    model = read(sources["v2"])
    saved, _ = trained(model, run_of(sources["v2"], tune=LORA), tmp_path / "checkpoints")
    assert export(saved, tmp_path / "out", source=sources["v2"], format="merged") == "model"
    found, wanted = read(tmp_path / "out").state_dict(), merge(model).state_dict()
    assert found.keys() == wanted.keys() and load(tmp_path / "out").tokenizer is not None
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


def test_what_a_run_has_not_is_refused(sources, tmp_path):
    run = run_of(sources["llama"])
    saved, _ = trained(read(sources["llama"]), run, tmp_path / "checkpoints")
    with pytest.raises(ConfigError, match="format stacked is of an adapter, and the run trains its weights without"):
        export(saved, tmp_path / "out", source=sources["llama"], format="stacked")
    with pytest.raises(CheckpointError, match="is not empty"):
        export(saved, tmp_path / "checkpoints", source=sources["llama"])
    with pytest.raises(CheckpointError, match=r"holds .*, which the model of the run has not|is of shape"):
        export(saved, tmp_path / "out", source=sources["v2"])
    adapted = run_of(sources["llama"], tune=LORA)
    saved, _ = trained(read(sources["llama"]), adapted, tmp_path / "adapted")
    with pytest.raises(ConfigError, match="merge it for"):
        export(saved, tmp_path / "out", source=sources["llama"], dtype="bfloat16")
    assert not (tmp_path / "out").exists()
