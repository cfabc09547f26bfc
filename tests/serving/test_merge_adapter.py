"""A LoRA folded in while a model is loaded, against peft on transformers' side of the same weights."""

import copy
import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.checkpoints.quantized_model import quantize_model
from modelwright.configs.run import LoraPart, TunePart
from modelwright.errors import CheckpointError, RequestError
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.layers.quantized import QuantizedExperts, QuantizedLinear
from modelwright.ops.weight_only import dequantise
from modelwright.serving.adapted import words_of
from modelwright.serving.load import load, load_network
from modelwright.serving.merge_adapter import merge_adapter
from modelwright.serving.opened import find_model
from modelwright.serving.prompts import encode_messages, require_template
from modelwright.training.tuning import load_adapter, lora_of, save_adapter, settle
from tests.checkpoints.tiny import write_v2
from tests.engine.engines import engine_of, greedy
from tests.fakes import MOE, tiny_v2
from tests.llamas import HUGGING_FACE, tiny_llama

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Llama with a tokenizer beside it."""
    folder = write_v2(tmp_path_factory.mktemp("base"))
    for file in [*folder.glob("*.safetensors*"), folder / "config.json"]:
        file.unlink()
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**HUGGING_FACE)).save_pretrained(folder)
    return folder


def adapt(base, folder, **how):
    """Save an adapter whose matrices are drawn, and give transformers' logits with it."""
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": TARGETS, "init_lora_weights": False} | how)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return adapted(torch.arange(3, 20)[None]).logits, model


def logits(base, adapter) -> torch.Tensor:
    return answers(base, *([] if adapter is None else [adapter]))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.0.self_attn.q_proj": 3, "up_proj": 20}},
        {"target_modules": ["v_proj", "lm_head"]},
    ],
)
def test_the_network_computes_what_peft_does(base, tmp_path, how):
    wanted, _ = adapt(base, tmp_path, **how)
    torch.testing.assert_close(logits(base, tmp_path), wanted, rtol=0, atol=2e-5)
    assert (logits(base, None) - wanted).abs().max() > 1e-2


def answers(name, *more: Path) -> torch.Tensor:
    checkpoint = find_model(str(name)).checkpoint
    for adapter in more:
        checkpoint = checkpoint.with_adapter(adapter)
    network = load_network(checkpoint, dtype="float32", device="cpu").model
    with torch.no_grad():
        return network(torch.arange(3, 20)[None]).logits


def test_a_model_may_be_called_by_its_adapter(base, tmp_path, monkeypatch):
    adapter = tmp_path / "adapter"
    wanted, _ = adapt(base, adapter)
    torch.testing.assert_close(answers(adapter), wanted, rtol=0, atol=2e-5)
    with torch.no_grad():
        whole = load(adapter, dtype="float32", device="cpu").model(torch.arange(3, 20)[None]).logits
    torch.testing.assert_close(whole, wanted, rtol=0, atol=2e-5)
    twice = answers(adapter, adapter)  # another one said beside it comes after it
    assert (twice - wanted).abs().max() > 1e-2
    for said in ("../base", "base"):  # relative to the adapter, and to where the command is typed
        monkeypatch.chdir(tmp_path)
        shutil.copytree(base, tmp_path / "base", dirs_exist_ok=True)
        damaged(adapter, base_model_name_or_path=said)
        torch.testing.assert_close(answers("adapter"), wanted, rtol=0, atol=2e-5)


def test_an_adapters_own_tokenizer_and_template_make_its_prompts(base, tmp_path):
    """transformers reads them there, too; trainers save them beside what learnt to answer in them."""
    import transformers

    adapter = tmp_path / "adapter"
    adapt(base, adapter)
    checkpoint = find_model(str(base)).checkpoint
    assert words_of(find_model(str(adapter)).checkpoint) == base  # there are none of its own
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for each in messages %}<|turn|>{{ each.role }}: {{ each.content }}{% endfor %}<|turn|>"
    )
    tokenizer.save_pretrained(adapter)
    messages = [{"role": "user", "content": "Hi"}]
    wanted = transformers.AutoTokenizer.from_pretrained(adapter).apply_chat_template(messages)["input_ids"]
    for found in (find_model(str(adapter)).checkpoint, checkpoint.with_adapter(adapter)):
        require_template(found, None)
        loaded = load_network(found, dtype="float32")
        assert list(encode_messages(loaded, messages).input_ids) == wanted
    with pytest.raises(RequestError, match=f"{base} has no chat template"):
        require_template(checkpoint, None)
    assert load(adapter, dtype="float32").tokenizer.chat_template == tokenizer.chat_template
    with pytest.raises(RequestError, match="has no chat template"):
        tokenizer.chat_template = None
        (adapter / "chat_template.jinja").unlink()
        require_template(find_model(str(adapter)).checkpoint, None)


def test_an_adapters_tokenizer_without_a_template_takes_no_templates_place(base, tmp_path):
    import transformers

    folder, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(base, folder)
    adapt(folder, adapter)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(adapter)
    found = find_model(str(adapter)).checkpoint
    assert words_of(found) == adapter
    (folder / "chat_template.jinja").write_text("{% for each in messages %}{{ each.content }}{% endfor %}")
    assert words_of(found) == folder
    loaded = load_network(found, dtype="float32")
    asked = encode_messages(loaded, [{"role": "user", "content": "Hi"}])
    assert list(asked.input_ids) == tokenizer("Hi", add_special_tokens=False)["input_ids"]


def test_an_adapter_beside_a_whole_model_is_not_left_out(base, tmp_path):
    wanted, _ = adapt(base, tmp_path)
    damaged(tmp_path, base_model_name_or_path="/nowhere")
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    torch.testing.assert_close(answers(tmp_path), wanted, rtol=0, atol=2e-5)
    for reads_alone in (find_checkpoint, lambda folder: convert(folder, tmp_path / "out", to="hf")):
        with pytest.raises(CheckpointError, match="holds an adapter: chat, generate, serve"):
            reads_alone(tmp_path)


def test_an_adapter_whose_model_cannot_be_found_says_which(base, tmp_path):
    adapt(base, tmp_path)
    damaged(tmp_path, base_model_name_or_path="/nowhere/at/all")
    with pytest.raises(CheckpointError, match="is an adapter of /nowhere/at/all, which cannot be read: "):
        find_model(str(tmp_path))
    damaged(tmp_path, base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="does not say in base_model_name_or_path"):
        find_model(str(tmp_path))


def test_embeddings_that_peft_saves_again_are_read_once(base, tmp_path):
    """As peft reads them: ``save_embedding_layers`` writes what trained whole under the names of the wrapper, too."""
    import transformers

    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapted = peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained(base), config)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(tmp_path, save_embedding_layers=True)
    assert len([name for name in load_file(tmp_path / "adapter_model.safetensors") if "lora" not in name]) == 6
    again = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM.from_pretrained(base), tmp_path).eval()
    with torch.no_grad():
        wanted = again(torch.arange(3, 20)[None]).logits
    torch.testing.assert_close(logits(base, tmp_path), wanted, rtol=0, atol=2e-5)
    assert (logits(base, None) - wanted).abs().max() > 1e-2


def test_a_head_that_peft_saves_with_its_adapter_must_be_the_models(base, tmp_path):
    adapt(base, tmp_path, target_modules=["lm_head"])
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.lm_head.base_layer.weight"] += 1
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="made for other weights of lm_head"):
        logits(base, tmp_path)


def damaged(folder, **config):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def test_what_cannot_be_folded_in_is_refused_by_name(base, tmp_path):
    folder = tmp_path / "whole"
    adapt(base, folder)
    for change, message in {
        "use_dora": "has use_dora",
        "fan_in_fan_out": "the other way round",
    }.items():
        copy = tmp_path / change
        shutil.copytree(folder, copy)
        damaged(copy, **{change: True})
        with pytest.raises(CheckpointError, match=message):
            logits(base, copy)
    damaged(folder, peft_type="IA3")
    with pytest.raises(CheckpointError, match="only LORA"):
        logits(base, folder)
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        logits(base, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(2, 2)}), "lm_head.weight .* is no matrix"),
        (lambda t: t.pop(sorted(t)[0]), "lacks"),
        (lambda t: t.update({sorted(t)[0]: torch.full_like(t[sorted(t)[0]], torch.nan)}), "not finite"),
        (lambda t: t.update({sorted(t)[0]: torch.zeros(4, 5)}), "has shape"),
        (
            lambda t: t.update(
                {f"base_model.model.model.layers.9.q_proj.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"}
            ),
            r"of model\.layers\.9\.q_proj, which this model has not",
        ),
        (lambda t: t.clear(), "is empty"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(base, tmp_path, change, message):
    adapt(base, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=message):
        logits(base, tmp_path)


def test_pickled_weights_are_not_read(base, tmp_path):
    adapt(base, tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        logits(base, tmp_path)


WIDE = {"hidden_size": 64, "intermediate_size": 128}
STORED = {
    "v2": lambda: tiny_v2(base=MOE | WIDE | {"moe_intermediate_size": 64, "q_lora_rank": 64, "v_head_dim": 16}),
    "llama": lambda: tiny_llama(base=HUGGING_FACE | WIDE),
}


@pytest.mark.parametrize("method", ["int8", "int4"])
@pytest.mark.parametrize("family", STORED)
def test_beside_integers_pairs_are_computed_with(base, tmp_path, family, method):
    """As much as they add to the numbers that the integers stand for; two adapters of other ranks add both."""
    stored, plain = tmp_path / "stored", tmp_path / "plain"
    model = STORED[family]()
    quantized = quantize_model(copy.deepcopy(model), method)
    quantized.save_pretrained(stored)
    model.load_state_dict(model.state_dict() | numbers_of(quantized))
    model.save_pretrained(plain)
    for folder in (stored, plain):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(base / file, folder)
    adapters = [drawn_adapter(STORED[family](), tmp_path / f"rank {rank}", rank) for rank in (3, 80)]
    ids = torch.arange(3, 20)[None]
    places = [find_checkpoint(each) for each in (stored, plain)]
    networks = [load_network(each.with_adapter(adapters[0]), dtype="float32").model for each in places]
    with torch.no_grad():
        bare = load_network(places[0], dtype="float32").model(ids).logits
        for adapter in (None, adapters[1]):
            for network in networks if adapter else ():
                merge_adapter(network, adapter)
            found, wanted = (network(ids).logits for network in networks)
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
            assert (found - bare).abs().max() > 1e-2
    answers = [engine_of(each).generate([[3, 9, 4, 12]], greedy(6))[0].completions[0].tokens for each in networks]
    assert answers[0] == answers[1]


def numbers_of(model) -> dict[str, torch.Tensor]:
    """What the integers of a quantized model stand for, by name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            found[f"{name}.weight"] = dequantise(module.stored)
        elif isinstance(module, QuantizedExperts):
            stacks = zip(("gate_up_proj", "down_proj"), module.stored, strict=True)
            found |= {f"{name}.{stack}": dequantise(weight) for stack, weight in stacks}
    return found


def drawn_adapter(model, folder, rank):
    """The folder of an adapter whose matrices are drawn."""
    settle(model, TunePart(lora=LoraPart(rank=rank, alpha=2.0 * rank)))
    with torch.no_grad():
        for name, pair in lora_of(model).items():
            pair.B.normal_(std=0.3 / rank, generator=torch.Generator().manual_seed(len(name)))
    save_adapter(model, folder)
    return folder


@pytest.mark.parametrize("begun", ["pissa", "olora"])
def test_pairs_that_were_taken_out_of_their_weights_are_refused(base, tmp_path, begun):
    """peft takes what they were at first out of the base again; added to all of it they would count twice."""
    adapt(base, tmp_path, init_lora_weights=begun)
    with pytest.raises(CheckpointError, match=f"has init_lora_weights '{begun}'"):
        logits(base, tmp_path)
    with pytest.raises(CheckpointError, match="init_lora_weights"):
        load_adapter(LlamaForCausalLM.from_pretrained(base), tmp_path)


@pytest.fixture(scope="module")
def tied(base, tmp_path_factory):
    """The same Llama with one matrix for its head and its embedding."""
    folder = tmp_path_factory.mktemp("tied")
    shutil.copytree(base, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**HUGGING_FACE | {"tie_word_embeddings": True})).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize(
    "how",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=["LoRA of the head", "LoRA of the embedding", "a head", "an embedding"],
)
def test_an_adapter_of_one_side_of_a_tied_matrix_is_refused(tied, tmp_path, how):
    adapt(tied, tmp_path, **how)
    with pytest.raises(CheckpointError, match=r"alone, which is one matrix with|is no matrix of a LoRA"):
        logits(tied, tmp_path)


def test_one_that_keeps_them_tied_is_read(tied, tmp_path):
    how = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    adapt(tied, tmp_path, **how)
    file = tmp_path / "adapter_model.safetensors"
    tensors = {
        name: tensor * 1.5 if "embed" in name or "head" in name else tensor for name, tensor in load_file(file).items()
    }
    save_file(tensors, file)
    import transformers

    theirs = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM.from_pretrained(tied), tmp_path).eval()
    with torch.no_grad():
        wanted = theirs(torch.arange(3, 20)[None]).logits
    torch.testing.assert_close(logits(tied, tmp_path), wanted, rtol=0, atol=2e-5)
    assert (logits(tied, None) - wanted).abs().max() > 1e-2
