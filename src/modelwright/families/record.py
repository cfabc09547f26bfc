"""`Family`, the record of a family: where each of its parts is found, and what it can do; it imports none of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module
from typing import Any, Literal

Reference = str
"""Where a part is found: ``module:name``, such as ``modelwright.families.llama.model:LlamaForCausalLM``."""


def resolve(reference: Reference) -> Any:
    """The part that a reference names; its module is imported by the first call that asks for it."""
    module, _, name = reference.partition(":")
    return reduce(getattr, name.split("."), import_module(module))


def decoder_parts(prefix: str = "") -> dict[str, str]:
    """The `Family.parts` of decoders that call their parameters as Llama does; ``prefix`` stands before all of them."""
    decoder = rf"^{prefix}(model\.)?"
    layer = rf"{decoder}layers\.\d+\."
    feed = rf"{layer}(mlp|block_sparse_moe)\."
    return {
        "embedding": rf"{decoder}embed_tokens\.",
        "attention": rf"{layer}self_attn\.(?!\w+norm\.)",
        "dense": rf"{feed}(gate_proj|up_proj|gate_up_proj|down_proj|fc1|fc2)\.",
        "experts": rf"{feed}experts\.",
        "shared": rf"{feed}shared_experts\.",
        "gate": rf"{feed}(gate|shared_expert_gate)\.",
        "norms": rf"{decoder}(layers\.\d+\.(self_attn\.)?)?\w*norm\.",
        "head": rf"^{prefix}(lm_head|score)\.",
    }


@dataclass(frozen=True)
class Dialect:
    """Another program's way to write the configs and tensors of a family.

    Attributes:
        name: what it is called, such as ``mindformers``.
        speaks: ``(values) -> bool``, whether the values of a JSON file without ``model_type`` are written in it.
        read_config: ``(path or values) -> config``, from a file of that program or from what one holds.
        tensors: how its tensors are named and packed, a ``modelwright.checkpoints.dialect.TensorDialect``.
    """

    name: str
    speaks: Reference
    read_config: Reference
    tensors: Reference


@dataclass(frozen=True)
class Family:
    """Models of one kind: everything that the rest of modelwright asks about them.

    Parts are references, resolved on first use, so that reading a config or planning imports no model. "Config" below
    is the config of the whole model; "decoder's config" is what its ``get_text_config()`` gives.

    Attributes:
        name: the family's folder.
        model_types: the ``model_type`` of a ``config.json`` that may stand for it, its config class's own first.
        architectures: the names that ``architectures`` may hold, each with the class of that model.
        causal: the one of these that draws the next token; it is meant where a file names no architecture.
        network: the causal model as plain modules, which the engine runs; its class of `causal` is made of it. Where it
            is left out that class serves, which takes a second or two longer to import.
        config: the config class.
        counts: ``(config) -> Counts``, the sizes that the planner counts.
        run_settings: ``(config) -> RunSettings``, what the config states about types, layout and training.
        cache: ``(decoder's config) -> CacheLayout``.
        decoding: ``(decoder's config) -> DecodingRules``; raises ConfigError for what the engine does not serve.
        processor: ``(folder, config) -> processor``, what makes arrays of text and pictures.
        prompts: ``(folder, config) -> maker of prompts`` for the engine, with a ``tokenizer`` and
            ``process_messages(messages, rendering)``; where it is left out the processor serves.
        processor_class: the class that transformers' ``AutoProcessor`` is told of, where it lacks one.
        auto_classes: names of transformers' Auto classes for models that read folders as the causal model, where
            transformers lacks the family.
        chat_template: the Jinja template by which conversations are printed where a folder brings none; None where
            nobody but the folder can say.
        draws: whether its tokens are text, or the colours of pixels; then its config says `start_token_id` and
            `n_positions`.
        language: the attribute of the causal model that holds its decoder, for a family that sees pictures; None for
            all others, whose causal model is the decoder.
        trains: whether the causal model computes a loss of ``labels``.
        parts: what of a model may be trained apart, each with the expression that finds the names of its parameters;
            every parameter is found by one of them. A family that says nothing is one part, ``model``.
        frozen: those of its parts that fine-tuning leaves as they are unless it is told which to train.
        export: the ``OnnxConfig`` of the causal model; None where no graph is made of it.
        slicing: ``(decoder's config, mesh) -> rules``, how tensor parallelism cuts the modules of this family, beyond
            the rules that ``parallel`` has for shared layers.
        dialect: another program's way to write its configs and tensors.
        gguf: llama.cpp's way, a ``modelwright.checkpoints.gguf.family.GgufFamily``.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: Mapping[str, Reference] = field(hash=False)
    causal: str
    config: Reference
    counts: Reference
    cache: Reference
    decoding: Reference
    network: Reference | None = None
    run_settings: Reference = "modelwright.planner.settings:plain_settings"
    processor: Reference = "modelwright.processing.tokenizer:read_tokenizer"
    prompts: Reference | None = None
    processor_class: Reference | None = None
    auto_classes: tuple[str, ...] = ()
    chat_template: Reference | None = None
    draws: Literal["text", "pixels"] = "text"
    language: str | None = None
    trains: bool = True
    parts: Mapping[str, str] = field(default_factory=lambda: {"model": ""}, hash=False)
    frozen: tuple[str, ...] = ()
    export: Reference | None = None
    slicing: Reference | None = None
    dialect: Dialect | None = None
    gguf: Reference | None = None

    @property
    def model_type(self) -> str:
        """The ``model_type`` that its config class writes."""
        return self.model_types[0]

    @property
    def config_class(self) -> Any:
        """The class of its configs."""
        return resolve(self.config)

    @property
    def causal_class(self) -> Any:
        """The class of the model that draws the next token."""
        return self.model_class(self.causal)

    @property
    def network_class(self) -> Any:
        """The class of the plain modules that draw the next token."""
        return self.causal_class if self.network is None else resolve(self.network)

    @property
    def sees_pictures(self) -> bool:
        """Whether prompts may hold pictures."""
        return self.language is not None

    @property
    def abilities(self) -> tuple[str, ...]:
        """What it can do, in words."""
        does = {"sees pictures": self.sees_pictures, "trains": self.trains, "exports": self.export is not None}
        return (f"draws {self.draws}", *(words for words, holds in does.items() if holds))

    def model_class(self, architecture: str) -> Any:
        """The class of the model that `architecture` names."""
        return resolve(self.architectures[architecture])

    def decoder_of(self, model: Any) -> Any:
        """The part of a causal model that reads tokens; the model itself unless it sees pictures."""
        return model if self.language is None else getattr(model, self.language)
