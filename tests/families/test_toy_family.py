"""A family of its own in this file alone: everything of modelwright serves it after one `register_family`.

The toy is a small decoder with learned positions, one key head for all query heads, attention and feed-forward side by
side in a block, and tensor names that no other family has. Each class and function below stands for a file of the
folder that a family has.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from modelwright import families
from modelwright.attention import AttentionBackend, DenseAttention
from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.quantized_model import quantize_model
from modelwright.configs.base import CheckedConfig, require_divides
from modelwright.configs.decoding import CacheLayout, DecodingRules
from modelwright.engine.params import SamplingParams
from modelwright.engine.slicing import slice_decoder
from modelwright.errors import ConfigError
from modelwright.export.decoder import DecoderGraph, decoder_graph, example_inputs
from modelwright.export.dummies import dummy_texts
from modelwright.export.graphs import Graph, OnnxConfig
from modelwright.export.onnx import export_onnx
from modelwright.export.runtime import OnnxDecoder
from modelwright.families import Family, family_of, forget_family, register_family
from modelwright.families.read import read_config
from modelwright.hf.arguments import PassInputs
from modelwright.hf.causal import CausalModel
from modelwright.hf.decoder import Decoder
from modelwright.hf.pretrained import ModelwrightPreTrainedModel
from modelwright.layers import StackOutput, run_stack, wanted
from modelwright.layers.checkpointed import CheckpointedLayer
from modelwright.parallel import Mesh, Rule
from modelwright.parallel.layers import inputs_of, keep_inputs, keep_outputs, sum_results
from modelwright.parallel.tensor import head_share
from modelwright.planner.counts import Counts
from modelwright.planner.plan import plan
from modelwright.planner.shapes import FeedForward, GroupedAttention, Layer, Linear
from modelwright.serving.load import load
from tests.engine.engines import engine_of, expected, greedy
from tests.engine.small_tokenizers import byte_tokenizer
from tests.fakes import tokens
from tests.parallel.threads import in_ranks


class ToyConfig(CheckedConfig):
    """``config.py``: the fields and the rules between them."""

    model_type = "toy"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads"}

    vocab_size: int = 320
    width: int = 24
    depth: int = 2
    heads: int = 4
    max_position_embeddings: int = 64
    initializer_range: float = 0.3
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def check_rules(self) -> None:
        self.require_at_least(1, "vocab_size", "width", "depth", "heads", "max_position_embeddings")
        require_divides("heads", self.heads, "width", self.width)


def toy_cache(config: ToyConfig) -> CacheLayout:
    """``decoding.py``: one key and one value, which all query heads share."""
    return CacheLayout(config.depth, 1, config.head_dim, config.head_dim)


def toy_decoding(config: ToyConfig) -> DecodingRules:
    """``decoding.py``: the last token, which is never read, needs no position."""
    return DecodingRules(context=config.max_position_embeddings + 1)


def toy_counts(config: ToyConfig) -> Counts:
    """``plan.py``: the sizes of all parts."""
    width = config.width
    attention = GroupedAttention(width, config.heads, 1, config.head_dim, qkv_bias=False, out_bias=True)
    layer = Layer(attention, FeedForward(width, 3 * width, gated=False, bias=True), norms=2 * width)
    return Counts(
        model_type=config.model_type,
        dim=width,
        vocab=config.vocab_size,
        positions=config.max_position_embeddings,
        layers=(layer,) * config.depth,
        final_norm=2 * width,
        head=Linear(width, config.vocab_size, cut="outputs"),
    )


class SharedKeyAttention(nn.Module):
    """``parts.py``: query heads over a single key head, ``[batch, tokens, width]`` to the same."""

    def __init__(self, config: ToyConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.ask = nn.Linear(config.width, config.width, bias=False)
        self.tell = nn.Linear(config.width, 2 * config.head_dim, bias=False)
        self.back = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, attention: AttentionBackend) -> Tensor:
        q = self.ask(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [batch, heads, tokens, head_dim]
        k, v = (part.unsqueeze(1) for part in self.tell(x).chunk(2, dim=-1))  # [batch, 1, tokens, head_dim]
        out = attention.attend(self.layer, q, k, v, scale=self.head_dim**-0.5)
        return self.back(out.transpose(1, 2).flatten(2))


class ToyBlock(CheckpointedLayer):
    """``parts.py``: attention and feed-forward of one normed input, side by side."""

    def __init__(self, config: ToyConfig, layer: int):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.look = SharedKeyAttention(config, layer)
        self.widen = nn.Linear(config.width, 3 * config.width)
        self.narrow = nn.Linear(3 * config.width, config.width)

    def forward(self, x: Tensor, attention: AttentionBackend, only: Tensor | None = None) -> Tensor:
        normed = self.norm(x)
        looked = wanted(x + self.look(normed, attention), only)
        return looked + self.narrow(F.gelu(self.widen(wanted(normed, only))))


class ToyPreTrainedModel(ModelwrightPreTrainedModel):
    """``model.py``: what both models share."""

    config_class = ToyConfig
    config: ToyConfig
    base_model_prefix = "trunk"
    _no_split_modules = ["ToyBlock"]


class ToyModel(ToyPreTrainedModel, Decoder):
    """``model.py``: the decoder without a head."""

    unused_tensors = (r"^scores\.weight$",)
    embedding_names = ("words", "places_of_words")
    norm_name = "end"

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.places_of_words = nn.Embedding(config.max_position_embeddings, config.width)
        self.blocks = nn.ModuleList(ToyBlock(config, layer) for layer in range(config.depth))
        self.end = nn.LayerNorm(config.width)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def stack(self) -> nn.ModuleList:
        return self.blocks

    def positions_of(self, inputs: PassInputs) -> Tensor:
        return inputs.positions()

    def attention_of(self, inputs: PassInputs) -> AttentionBackend:
        return DenseAttention(inputs.mask, inputs.cache, inputs.past)

    def embed(self, positions: Tensor, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        return x + self.places_of_words(positions)

    def run_layers(
        self,
        x: Tensor,
        positions: Tensor,
        attention: AttentionBackend,
        keep: bool = False,
        only: Tensor | None = None,
    ) -> StackOutput:
        return run_stack(self.blocks, x, attention, keep=keep, only=only)

    def finish(self, x: Tensor) -> Tensor:
        return self.end(x)


class ToyForCausalLM(ToyPreTrainedModel, CausalModel):
    """``model.py``: the decoder with a head."""

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.trunk = ToyModel(config)
        self.scores = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.scores


def toy_slicing(config: ToyConfig, mesh: Mesh) -> dict[type, Rule]:
    """``slicing.py``: each rank keeps some query heads and all of the key head, and some units of the feed-forward."""
    return {SharedKeyAttention: slice_heads, ToyBlock: slice_block}


def slice_heads(attention: SharedKeyAttention, mesh: Mesh) -> None:
    size = attention.head_dim
    heads = head_share(inputs_of(attention.back) // size, mesh)
    own = range(heads.start * size, heads.stop * size)
    keep_outputs(attention.ask, torch.arange(own.start, own.stop))
    keep_inputs(attention.back, own, mesh)
    sum_results(attention.back, mesh)


def slice_block(block: ToyBlock, mesh: Mesh) -> None:
    slice_heads(block.look, mesh)
    units = mesh.share(inputs_of(block.narrow))
    keep_outputs(block.widen, torch.arange(units.start, units.stop))
    keep_inputs(block.narrow, units, mesh)
    sum_results(block.narrow, mesh)


class ToyOnnxConfig(OnnxConfig):
    """``export.py``: token ids to the scores of the next token."""

    config: ToyConfig

    @property
    def max_positions(self) -> int | None:
        return self.config.max_position_embeddings

    def generate_dummy_inputs(
        self,
        preprocessor: Any,
        batch_size: int = 1,
        seq_length: int = -1,
        is_pair: bool = False,
        framework: str | None = None,
    ) -> Mapping[str, Any]:
        return dummy_texts(preprocessor, batch_size, seq_length, is_pair, framework)

    def graphs(self, model: nn.Module, dtype: torch.dtype) -> Iterator[Graph]:
        yield decoder_graph(self, DecoderGraph(model, self.cache), example_inputs(self, dtype))


FAMILY = Family(
    name="toy",
    model_types=("toy",),
    architectures={"ToyModel": f"{__name__}:ToyModel", "ToyForCausalLM": f"{__name__}:ToyForCausalLM"},
    causal="ToyForCausalLM",
    config=f"{__name__}:ToyConfig",
    counts=f"{__name__}:toy_counts",
    cache=f"{__name__}:toy_cache",
    decoding=f"{__name__}:toy_decoding",
    slicing=f"{__name__}:toy_slicing",
    export=f"{__name__}:ToyOnnxConfig",
    auto_classes=("AutoModelForCausalLM",),
)


@pytest.fixture(autouse=True)
def registered():
    register_family(FAMILY)
    yield
    forget_family("toy")


def toy(kind: Any = ToyForCausalLM, **fields: Any) -> Any:
    torch.manual_seed(0)
    return kind(ToyConfig(**fields)).eval()


@pytest.fixture
def folder(tmp_path):
    """What a toy saves, a tokenizer beside it."""
    toy().save_pretrained(tmp_path / "toy")
    byte_tokenizer().save_pretrained(tmp_path / "toy")
    return tmp_path / "toy"


def test_what_is_saved_is_loaded(folder):
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["ToyForCausalLM"]
    model, tokenizer = load(folder, device="cpu")
    ids = torch.tensor([tokenizer.encode("hello")])
    assert type(model) is ToyForCausalLM and type(read_config(folder)) is ToyConfig
    assert torch.equal(model(ids).logits, toy()(ids).logits)
    bare = ToyModel.from_pretrained(folder)
    assert torch.equal(bare(ids).last_hidden_state, toy().trunk(ids).last_hidden_state)
    told = AutoModelForCausalLM.from_pretrained(folder)
    assert type(told) is ToyForCausalLM and torch.equal(told(ids).logits, model(ids).logits)


def test_the_engine_draws_what_generate_draws():
    model, prompts = toy(), [tokens(length, vocab=320, seed=length).tolist() for length in (3, 9, 21)]
    engine = engine_of(model, byte_tokenizer())
    assert engine.context == 65
    results = engine.generate(prompts, greedy(12))
    for prompt, result in zip(prompts, results, strict=True):
        assert tuple(result.completions[0].tokens) == expected(model, prompt, 12).tokens
    assert engine.generate(["good day"], SamplingParams(max_tokens=3))[0].completions[0].finish_reason == "length"


def test_a_cached_step_says_what_the_whole_sequence_says():
    model, ids = toy(), tokens(2, 10, vocab=320)
    first = model(ids[:, :7], use_cache=True)
    second = model(ids[:, 7:], cache=first.cache)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), model(ids).logits, atol=1e-5, rtol=0)


def test_the_plan_counts_every_parameter_and_cached_number():
    model = toy()
    planned = plan(model.config, context=64, dtype="fp32")
    assert planned.counts.parameters.total == sum(parameter.numel() for parameter in model.parameters())
    assert planned.counts.kv_numbers == toy_cache(model.config).numbers == 2 * 2 * 6
    assert planned.max_context == 64


@pytest.mark.slow
def test_the_graph_continues_as_the_model_does(folder, tmp_path):
    report = export_onnx(folder, tmp_path / "onnx")
    assert report.family == "toy" and report.verification.largest < 1e-4
    prompt = tokens(1, 5, vocab=320)
    found = OnnxDecoder(tmp_path / "onnx").generate(prompt.numpy(), 8, temperature=0.0)
    assert np.asarray(found)[0, -8:].tolist() == list(expected(toy(), prompt[0], 8).tokens)


def test_it_trains():
    model, ids = toy().train(), tokens(2, 6, vocab=320)
    loss = model(ids, labels=ids).loss
    shifted = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, shifted)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_ranks_share_it():
    model, ids = toy(), tokens(2, 11, vocab=320)

    def part(mesh: Mesh) -> Tensor:
        mine = copy.deepcopy(model)
        slice_decoder(mine, mesh)
        assert mine.trunk.blocks[0].look.ask.out_features == 12
        return mine(input_ids=ids).logits

    for found in in_ranks(2, part):
        torch.testing.assert_close(found, model(ids).logits, atol=1e-5, rtol=0)


def test_its_weights_are_rounded_and_saved(tmp_path):
    model, ids = quantize_model(toy(), "int8"), tokens(1, 6, vocab=320)
    model.save_pretrained(tmp_path)
    assert torch.equal(ToyForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_its_checkpoint_is_converted(folder, tmp_path):
    convert(folder, tmp_path / "half", dtype="float16", max_shard_size="20KB")
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    ids, half = tokens(1, 6, vocab=320), toy().half()
    assert torch.equal(load(tmp_path / "half", device="cpu").model(ids).logits, half(ids).logits)
    message = r"num_key_value_heads \(1\) pools key and value heads, whose number a toy config does not state"
    with pytest.raises(ConfigError, match=message):
        convert(folder, tmp_path / "fewer", num_key_value_heads=1)


def test_it_is_found_by_architecture_type_config_and_model():
    model = toy()
    for subject in (model, model.config, {"architectures": ["ToyModel"]}, {"model_type": "toy"}):
        assert family_of(subject) is FAMILY
    assert families.model_class({"architectures": ["ToyModel"], "model_type": "toy"}) is ToyModel
    assert FAMILY.abilities == ("draws text", "trains", "exports")


def test_a_forgotten_family_is_served_no_more(folder):
    forget_family("toy")
    with pytest.raises(ConfigError, match=r"architectures \['ToyForCausalLM'\] \(model_type 'toy'\) is not served"):
        load(folder)
    with pytest.raises(ConfigError, match=r"the engine serves .*; got ToyForCausalLM"):
        engine_of(toy())
    with pytest.raises(ConfigError, match='to be counted; got "toy"'):
        plan(ToyConfig())
