"""`load` and `find_checkpoint` on tiny checkpoints, whole and damaged; tensors are checked in ``models``."""

import json
import re
import shutil

import pytest
import torch
from tokenizers import Tokenizer

import modelwright
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor
from modelwright.serving.load import Loaded, load, pick_device
from tests.checkpoints.tiny import PICTURE, write_v2


@pytest.fixture
def copy(vl2, tmp_path):
    return shutil.copytree(vl2, tmp_path / "copy")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(*args, error=CheckpointError, **kwargs) -> str:
    with pytest.raises(error) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def test_vl2_comes_with_its_processor_and_answers(vl2):
    model, processor = modelwright.load(vl2, device="cpu")
    assert type(model) is DeepseekVLV2ForCausalLM
    assert type(processor) is DeepseekVLV2Processor
    assert not model.training
    assert model.dtype == torch.float32
    message = {"role": "user", "content": "<image>\nWhat is it?", "images": [PICTURE]}
    batch = processor(conversations=[message])
    del batch["labels"]
    assert model(**batch).logits.shape == (1, batch["input_ids"].shape[1], model.config.language_config.vocab_size)


def test_text_only_v2_comes_with_its_tokenizer(v2):
    loaded = load(v2, device="cpu")
    assert type(loaded) is Loaded
    assert type(loaded.model) is DeepseekV2ForCausalLM
    assert loaded.tokenizer is loaded.processor
    assert load(v2).tokenizer.eos_token == "<｜end▁of▁sentence｜>"


def test_the_processors_tokenizer_is_the_tokenizer(vl2):
    loaded = load(vl2)
    assert loaded.tokenizer is loaded.processor.tokenizer


@pytest.mark.parametrize("text", ["Hello there", " 你好\n\nred  circle", "<|User|>: 3 stars"])
def test_the_tokenizer_file_is_followed_whatever_class_its_config_names(v2, text):
    """The official config names a Llama class, which would split the words in its own way."""
    assert json.loads((v2 / "tokenizer_config.json").read_text())["tokenizer_class"] == "LlamaTokenizerFast"
    whole = Tokenizer.from_file(str(v2 / "tokenizer.json"))
    ids = load(v2).tokenizer.encode(text, add_special_tokens=False)
    assert ids == whole.encode(text, add_special_tokens=False).ids
    assert load(v2).tokenizer.decode(ids) == text


def test_what_only_the_models_config_says_reaches_the_processor(copy):
    edit_config(copy, global_view_pos="tail")
    assert "global_view_pos" not in json.loads((copy / "processor_config.json").read_text())
    assert load(copy).processor.global_view_pos == "tail"


def test_options_and_overrides_reach_the_model(vl2):
    model, _ = load(vl2, dtype="bfloat16", attn_implementation="eager", vision_batch_size=7)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert model.config.vision_batch_size == 7


def test_progress_counts_up_to_all_bytes(v2):
    calls = []
    load(v2, progress=lambda name, done, total: calls.append((done, total)))
    done = [count for count, _ in calls]
    assert done == sorted(done)
    assert {total for _, total in calls} == {done[-1]}
    assert 0 < done[-1] <= find_checkpoint(v2).weight_bytes


def test_a_checkpoint_is_told_from_its_small_files(vl2, v2, tmp_path):
    pictures, text = find_checkpoint(vl2), find_checkpoint(str(v2))
    assert (pictures.family, pictures.reads_pictures) == ("deepseek_vl_v2", True)
    assert (text.family, text.reads_pictures) == ("deepseek_v2", False)
    assert text.weight_bytes == (v2 / "model.safetensors").stat().st_size
    torch.manual_seed(0)
    load(v2).model.save_pretrained(tmp_path, max_shard_size="50KB")
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert find_checkpoint(tmp_path).weight_bytes == sum(shard.stat().st_size for shard in shards)


def test_without_architectures_the_model_type_decides(copy):
    config = json.loads((copy / "config.json").read_text())
    del config["architectures"]
    (copy / "config.json").write_text(json.dumps(config))
    assert type(load(copy).model) is DeepseekVLV2ForCausalLM


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer.json, without which no text can be read or written"),
        ("processor_config.json", "has no processor_config.json, which says how pictures are cut into tiles"),
        ("model.safetensors", "holds no weights: neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_a_missing_file_is_named(copy, name, message):
    (copy / name).unlink()
    assert refusal(copy) == f"{copy} {message}"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_a_checkpoint_error_that_names_the_folder(copy, name, content):
    (copy / name).write_text(content)
    assert str(copy) in refusal(copy)


def test_an_unknown_model_type_is_refused_with_the_list_of_ours(copy):
    (copy / "config.json").write_text('{"model_type": "gpt2"}')
    served = "deepseek_v2, deepseek_vl_v2, imagegpt, llama, mistral, qwen2"
    assert refusal(copy, error=ConfigError) == f"model_type 'gpt2' is not served; we have {served}"


def test_a_folder_that_is_not_there_and_is_no_hub_id(tmp_path):
    missing = tmp_path / "nowhere" / "model"
    assert refusal(missing) == f"{missing} is not a folder and not a hub id"


@pytest.mark.parametrize("device", ["tpu9", "meta", "cpu:x"])
def test_an_unusable_device_is_refused(v2, device):
    message = refusal(v2, error=ConfigError, device=device)
    assert re.match(rf"device '{device}' (cannot be used here|holds no values); torch finds cpu", message)


def test_auto_is_a_device_of_this_machine():
    assert pick_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    assert pick_device(torch.device("cpu")) == torch.device("cpu")


def test_a_wrong_dtype_attention_or_field_is_refused(v2):
    assert refusal(v2, error=ConfigError, dtype="int8").startswith("dtype must be auto or one of")
    message = refusal(v2, error=ConfigError, attn_implementation="flash")
    assert message == "attn_implementation must be one of sdpa, eager, not 'flash'"
    assert "num_hidden_layers" in refusal(v2, error=ConfigError, num_hiden_layers=3)
    assert refusal(v2, error=ConfigError, colour=3) == "DeepseekV2Config has no field 'colour' to override"


def test_other_decoders_load_too(tmp_path):
    scaling = {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    model, _ = load(write_v2(tmp_path, rope_scaling=scaling, n_routed_experts=None, q_lora_rank=8))
    assert model.config.rope_scaling["factor"] == 4.0
