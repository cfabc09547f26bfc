"""The Llama configuration in both dialects: every field, its default and the rules between them; no tensors."""

from dataclasses import field
from os import PathLike
from typing import Any, ClassVar

from modelwright.configs.base import CheckedConfig, require, require_divides, require_one_of
from modelwright.configs.engine import EngineSettings, read_quantization
from modelwright.configs.llama_dialects import (
    ALIASES,
    DTYPE_FIELDS,
    DTYPES,
    as_llama,
    canonical,
    completed,
    dtype_name,
    merge_rope,
    moved_dtype,
    without_overridden_rope,
)
from modelwright.configs.moe import MoEConfig
from modelwright.configs.parallel import ParallelConfig, ParallelSettings, read_pipeline_stage, stage_layers
from modelwright.configs.rope import RopeSettings, is_number
from modelwright.configs.rope_extensions import Extension, extend_method, read_hugging_face
from modelwright.configs.sampling import SamplingSettings
from modelwright.configs.training import TrainingSettings

_PARTS = {"parallel_config": ParallelConfig, "moe_config": MoEConfig}


class LlamaConfig(CheckedConfig):
    """Llama 1 to 3.3 and its kin, from MindFormers' 61 fields or from a Hugging Face config.

    Fields are named as in Hugging Face where it has a name; MindFormers' (`num_layers`, `num_heads`, `n_kv_heads`,
    `max_position_embedding`, `theta`, `init_method_std`) read, set and build the same fields. `intermediate_size`,
    `num_key_value_heads` and `max_position_embeddings` hold numbers, resolved when the config is built. What is left
    out takes MindFormers' default, or Hugging Face's where the values speak its dialect (`llama_dialects`).

    `parallel_config` and `moe_config` are dicts or objects, and read as `ParallelConfig` and `MoEConfig`. RoPE is read
    from `theta`, `extend_method` and `scaling_factor`, or from `rope_theta` with `rope_parameters` or `rope_scaling`.
    `dtype` is another name of `param_init_type`; where computing and rotating used the same type, setting it later, as
    transformers does, takes them along. A negative `pad_token_id` means none.
    """

    model_type = "llama"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = dict(ALIASES)
    aliases: ClassVar[frozenset[str]] = frozenset(ALIASES) | {
        "attention_bias",
        "head_dim",
        "quantization_config",
        "rope_parameters",
        "rope_scaling",
        "sliding_window",
    }

    batch_size: int = 1
    seq_length: int = 2048
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    max_position_embeddings: int = 2048
    intermediate_size: int = 11008
    vocab_size: int = 32000
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    rms_norm_eps: float = 1e-5
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 0
    ignore_token_id: int = -100
    rope_theta: float = 10000.0
    compute_dtype: str = "float16"
    layernorm_compute_type: str = "float32"
    softmax_compute_type: str = "float32"
    rotary_dtype: str = "float32"
    param_init_type: str = "float16"
    residual_dtype: str | None = None
    embedding_init_type: str | None = None
    qkv_has_bias: bool = False
    qkv_concat: bool = False
    attn_proj_has_bias: bool = False
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    moe_config: MoEConfig = field(default_factory=MoEConfig)
    use_past: bool = False
    extend_method: str = "None"
    scaling_factor: float | dict[str, Any] = 1.0
    is_dynamic: bool = False
    use_rope_slice: bool = False
    use_flash_attention: bool = False
    use_ring_attention: bool = False
    use_attn_mask_compression: bool = False
    use_eod_attn_mask_compression: bool = False
    parallel_optimizer: bool = False
    fine_grain_interleave: int = 1
    pp_interleave_num: int = 1
    offset: int | list[int] | list[list[int]] = 0
    initializer_range: float = 0.01
    checkpoint_name_or_path: str = ""
    repetition_penalty: float = 1.0
    max_decode_length: int = 1024
    block_size: int = 16
    num_blocks: int = 512
    top_k: int = 5
    top_p: float = 1.0
    do_sample: bool = True
    quant_config: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    llm_backend: str = ""
    fused_rms_norm: bool = True
    input_sliced_sig: bool = False
    rmsnorm_compute_2d: bool = False
    chunk_prefill: bool = False
    calculate_per_token_loss: bool = False
    pipeline_stage: dict[str, Any] | None = None
    return_hidden_states: bool = False
    # Beyond MindFormers.
    hidden_act: str = "silu"
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    pretraining_tp: int = 1
    use_cache: bool = True
    reset_position_ids: bool = False
    norm_init_type: str | None = None

    @classmethod
    def merge(cls, values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """`CheckedConfig.merge` over one set of names, so that an override replaces a file's other names of a thing."""
        values = completed(values)
        values |= merge_rope(values, values.get("max_position_embeddings") or cls.max_position_embeddings)
        overrides = dict(overrides)
        for name in ("torch_dtype", "dtype"):
            if (dtype := overrides.pop(name, None)) not in (None, "auto"):
                values |= moved_dtype(values, dtype)
        overrides = canonical(overrides)
        for name in _PARTS:
            if isinstance(values.get(name), dict) and isinstance(overrides.get(name), dict):
                overrides[name] = values[name] | overrides[name]
        return super().merge(without_overridden_rope(values, overrides), overrides)

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        cls._refuse_misspelt(values)
        values = as_llama(completed(values))
        pad = values.get("pad_token_id")
        if isinstance(pad, int) and pad < 0:
            values["pad_token_id"] = None
        values = super().normalise(_resolved(values))
        for name, part in _PARTS.items():
            values[name] = part.read(values.get(name), name)
        return merge_rope(values, values["max_position_embeddings"])

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _PARTS:
            value = _PARTS[key].read(value, key)
        elif key in DTYPE_FIELDS:
            value = dtype_name(value)
        elif key == "extend_method":
            value = extend_method(value)
        super().__setattr__(key, value)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @head_dim.setter
    def head_dim(self, value: int | None) -> None:
        rule = f"head_dim ({value}) must be hidden_size / num_attention_heads ({self.head_dim})"
        require(value is None or value == self.head_dim, rule)

    @property
    def dtype(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """transformers' name of `param_init_type`, the type that weights are stored in."""
        return self.param_init_type

    @dtype.setter
    def dtype(self, value: Any) -> None:
        if value is not None:
            for name, moved in moved_dtype(vars(self), value).items():
                setattr(self, name, moved)

    @property
    def attention_bias(self) -> bool:
        """Hugging Face's one switch for the biases of all four projections.

        Raises:
            ConfigError: `qkv_has_bias` and `attn_proj_has_bias` differ, so that it cannot say them.
        """
        self._require_one_bias()
        return self.qkv_has_bias

    @attention_bias.setter
    def attention_bias(self, value: bool) -> None:
        self.qkv_has_bias = self.attn_proj_has_bias = value

    @property
    def extension(self) -> Extension:
        """RoPE in MindFormers' words."""
        return Extension(self.rope_theta, self.extend_method, self.scaling_factor)

    @property
    def rope(self) -> RopeSettings:
        """What this model's rotary embedding is built from."""
        return self.extension.settings(self.head_dim, self.max_position_embeddings)

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The same RoPE as transformers v5 writes it, NTK as a plain base."""
        return self.extension.to_hugging_face()

    @rope_parameters.setter
    def rope_parameters(self, value: dict[str, Any] | None) -> None:
        if value == self.rope_parameters:
            return
        theta = self.rope_parameters["rope_theta"]
        read = read_hugging_face(value or {}, theta, self.max_position_embeddings, "rope_parameters")
        self.rope_theta, self.extend_method, self.scaling_factor = read.theta, read.method, read.factor

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """The extension as older Hugging Face configs write it beside `rope_theta`; `None` for plain RoPE."""
        scaling = {key: value for key, value in self.rope_parameters.items() if key != "rope_theta"}
        return None if scaling == {"rope_type": "default"} else scaling

    @rope_scaling.setter
    def rope_scaling(self, value: dict[str, Any] | None) -> None:
        self.rope_parameters = value

    @property
    def embedding_dtype(self) -> str:
        """The type that the embedding is stored in."""
        return self.embedding_init_type or self.param_init_type

    @property
    def norm_dtype(self) -> str:
        """The type that norm weights are stored in: MindFormers' is the one norms compute in."""
        return self.norm_init_type or self.layernorm_compute_type

    @property
    def residual_dtype_name(self) -> str:
        """The type that each residual is added in."""
        return self.residual_dtype or self.compute_dtype

    @property
    def has_experts(self) -> bool:
        """Whether the feed-forward layers route to experts."""
        return self.moe_config.expert_num > 1

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a document, none if there is no such token."""
        eos = self.eos_token_id
        return tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)

    @property
    def engine(self) -> EngineSettings:
        """How a serving engine runs this model."""
        return EngineSettings(
            batch_size=self.batch_size,
            seq_length=self.seq_length,
            max_decode_length=self.max_decode_length,
            use_past=self.use_past,
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            is_dynamic=self.is_dynamic,
            chunk_prefill=self.chunk_prefill,
            backend=self.llm_backend,
            quantization=read_quantization(self.quant_config),
        )

    @property
    def sampling(self) -> SamplingSettings:
        """How the next token is chosen by default."""
        return SamplingSettings(
            do_sample=self.do_sample,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            max_decode_length=self.max_decode_length,
            bos_token_id=self.bos_token_id,
            eos_token_ids=self.eos_token_ids,
            pad_token_id=self.pad_token_id,
        )

    @property
    def parallel(self) -> ParallelSettings:
        """How this model is laid out over devices."""
        degrees, first, offset = self.parallel_config, 0, self.offset
        stages = degrees.pipeline_stage
        if self.pipeline_stage is not None:
            first, stages, offset = read_pipeline_stage(self.pipeline_stage, stages)
        return ParallelSettings(
            config=degrees,
            stage_layers=stage_layers(self.num_hidden_layers, stages, self.pp_interleave_num, offset),
            first_stage=first,
            shard_optimizer=self.parallel_optimizer,
            ring=self.use_ring_attention,
            token_chunks=self.fine_grain_interleave,
        )

    @property
    def training(self) -> TrainingSettings:
        """How a trainer feeds this model and weighs its loss."""
        return TrainingSettings(
            batch_size=self.batch_size,
            seq_length=self.seq_length,
            ignore_token_id=self.ignore_token_id,
            pad_token_id=self.pad_token_id,
            input_sliced_sig=self.input_sliced_sig,
            per_token_loss=self.calculate_per_token_loss,
            micro_batches=self.parallel_config.micro_batch_num,
            recompute=self.parallel_config.recompute,
            swap=self.parallel_config.swap,
        )

    @property
    def fields_without_effect(self) -> list[str]:
        """The fields set away from their defaults that change nothing on torch, with this config's other values."""
        names = [
            f"parallel_config.{name}"
            for name in self.parallel_config.changed()
            if name in ParallelConfig.WITHOUT_EFFECT
        ]
        idle = (name for name in self.moe_config.changed() if name in MoEConfig.WITHOUT_EFFECT or not self.has_experts)
        names += [f"moe_config.{name}" for name in idle]
        if self.fine_grain_interleave > 1 and self.parallel_config.model_parallel == 1:
            names.append("fine_grain_interleave")
        if self.pp_interleave_num > 1 and self.parallel_config.pipeline_stage == 1:
            names.append("pp_interleave_num")
        return names

    def to_dict(self) -> dict[str, Any]:
        """Every field, and beside them what Hugging Face's Llama calls the same things; `from_dict` reads it back."""
        views = {
            "theta": self.rope_theta,
            "rope_theta": self.rope_parameters["rope_theta"],
            "rope_parameters": self.rope_parameters,
            "rope_scaling": self.rope_scaling,
            "head_dim": self.head_dim,
            "dtype": self.dtype,
            "parallel_config": self.parallel_config.to_dict(),
            "moe_config": self.moe_config.to_dict(),
        }
        if self.qkv_has_bias == self.attn_proj_has_bias:
            views["attention_bias"] = self.attention_bias
        return super().to_dict() | views

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write a config.json that transformers' Llama reads as the same model.

        Raises:
            ConfigError: Hugging Face's Llama has no way to say it (`check_hugging_face`).
        """
        self.check_hugging_face()
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def check_hugging_face(self) -> None:
        """Raise `ConfigError`, with the reason, for what Hugging Face's Llama cannot express."""
        self._require_one_bias()
        require(
            self.extend_method != "DYNAMIC_NTK",
            'extend_method "DYNAMIC_NTK" has no rope type in Hugging Face ("dynamic" grows otherwise)',
        )

    def _require_one_bias(self) -> None:
        qkv, out = self.qkv_has_bias, self.attn_proj_has_bias
        require(
            qkv == out,
            f"Hugging Face's attention_bias is one switch: qkv_has_bias ({qkv}) must equal attn_proj_has_bias ({out})",
        )

    def check_rules(self) -> None:
        self._check_ranges()
        self._check_shape()
        self._check_attention()
        self._check_parallel()
        for view in (self.engine, self.sampling, self.training):
            view.check_rules()

    def _check_ranges(self) -> None:
        self.require_at_least(1, "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        self.require_at_least(1, "max_position_embeddings", "intermediate_size", "vocab_size", "multiple_of")
        self.require_at_least(1, "fine_grain_interleave", "pp_interleave_num", "pretraining_tp")
        self.require_at_least(0, "initializer_range")
        for name in ("rms_norm_eps", "ffn_dim_multiplier"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be above 0, got {value}")
        for name in DTYPE_FIELDS:
            if (dtype := getattr(self, name)) is not None:
                require_one_of(name, dtype, DTYPES)
        pad, rows = self.pad_token_id, self.vocab_size
        require(pad is None or 0 <= pad < rows, f"pad_token_id ({pad}) must be below vocab_size ({rows})")

    def _check_shape(self) -> None:
        require_divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        require_divides("num_key_value_heads", groups, "num_attention_heads", heads)
        require(
            self.head_dim % 2 == 0,
            f"RoPE turns pairs: hidden_size / num_attention_heads ({self.head_dim}) must be even",
        )
        require(self.hidden_act == "silu", f'hidden_act must be "silu" in a Llama, got "{self.hidden_act}"')
        require(not self.mlp_bias, "mlp_bias must be False: the feed-forward layers of a Llama have no biases")
        widths = {"hidden_size": self.hidden_size, "intermediate_size": self.intermediate_size}
        widths |= {"vocab_size": self.vocab_size, "num_key_value_heads * head_dim": groups * self.head_dim}
        for name, width in widths.items():
            require_divides("pretraining_tp", self.pretraining_tp, name, width)

    def _check_attention(self) -> None:
        require(0 <= self.attention_dropout < 1, f"attention_dropout must be in [0, 1), got {self.attention_dropout}")
        self.extension.settings(self.head_dim, self.max_position_embeddings)
        require(
            self.extend_method != "DYNAMIC_NTK" or self.is_dynamic,
            'extend_method "DYNAMIC_NTK" needs is_dynamic=True, got is_dynamic=False',
        )
        flash, context = self.use_flash_attention, self.parallel_config.context_parallel
        require(
            not self.use_ring_attention or (flash and context > 1),
            f"use_ring_attention (True) needs use_flash_attention=True and context_parallel above 1, got "
            f"use_flash_attention={flash} and context_parallel={context}",
        )
        packed = self.use_eod_attn_mask_compression
        require(
            not packed or len(self.eos_token_ids) > 0,
            "use_eod_attn_mask_compression (True) needs an eos_token_id to end documents, got None",
        )
        require(
            packed or not self.reset_position_ids,
            "reset_position_ids (True) needs use_eod_attn_mask_compression=True, got False",
        )

    def _check_parallel(self) -> None:
        degrees = self.parallel_config
        model, split = degrees.model_parallel, degrees.model_parallel * degrees.ulysses_degree
        for name in ("num_attention_heads", "num_key_value_heads"):
            require_divides("model_parallel x the ulysses degree", split, name, getattr(self, name))
        for name in ("hidden_size", "intermediate_size"):
            require_divides("model_parallel", model, name, getattr(self, name))
        experts = self.moe_config
        if self.has_experts:
            require_divides("expert_parallel", degrees.expert_parallel, "expert_num", experts.expert_num)
        require(
            experts.expert_model_parallel in (None, 1, model),
            f"expert_model_parallel ({experts.expert_model_parallel}) must be 1 or model_parallel ({model})",
        )
        self.parallel  # noqa: B018  # resolves the stages, which raises where they do not add up


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the numbers that MindFormers derives when they are left out; a wrong type is left to `check`."""
    values = {"hidden_size": 4096, "num_attention_heads": 32, "seq_length": 2048} | values
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if not values.get("max_position_embeddings"):
        values["max_position_embeddings"] = values["seq_length"]
    if values.get("intermediate_size") is None:
        values["intermediate_size"] = feed_forward_width(
            values["hidden_size"], values.get("multiple_of", 256), values.get("ffn_dim_multiplier")
        )
    return values


def feed_forward_width(hidden_size: int, multiple_of: int = 256, ffn_dim_multiplier: float | None = None) -> int:
    """MindFormers' `intermediate_size`: two thirds of 4 x `hidden_size`, stretched first, rounded up to `multiple_of`.

    Meta's code multiplies after taking two thirds, and gives another width where `multiple_of` is small.
    """
    for name, value in (("hidden_size", hidden_size), ("multiple_of", multiple_of)):
        holds = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(holds, f"{name} must be an int of at least 1, got {value!r}")
    width = 4 * hidden_size
    if ffn_dim_multiplier is not None:
        require(
            is_number(ffn_dim_multiplier), f"ffn_dim_multiplier must be a finite number, got {ffn_dim_multiplier!r}"
        )
        width = int((ffn_dim_multiplier + 0.01) * width)
    return multiple_of * -(-int(2 * width / 3) // multiple_of)
