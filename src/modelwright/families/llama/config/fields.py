"""The fields of a Llama configuration, their defaults, and what follows from them; how they are read is elsewhere."""

from collections.abc import Iterator
from dataclasses import field
from typing import Any

from modelwright.configs.base import CheckedConfig
from modelwright.configs.field_types import fits, plain, shown
from modelwright.configs.moe import MoEConfig
from modelwright.configs.parallel import ParallelConfig
from modelwright.configs.rope import RopeSettings
from modelwright.configs.rope_extensions import Extension
from modelwright.errors import ConfigError
from modelwright.families.llama.config.names import HUGGING_FACE

STATED_HEAD_DIM = "_head_dim"
"""The attribute of a stated width of heads; None, or none, where it follows from other fields."""


class LlamaFields(CheckedConfig):
    """What `LlamaConfig` holds: MindFormers' 61 fields, the few that only Hugging Face has, and the dialect.

    The defaults here are those of Hugging Face's dialect; MindFormers' are in `MINDFORMERS_FIELDS`.
    """

    dialect: str = HUGGING_FACE
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
    rms_norm_eps: float = 1e-6
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None
    ignore_token_id: int = -100
    rope_theta: float = 10000.0
    compute_dtype: str = "float32"
    layernorm_compute_type: str = "float32"
    softmax_compute_type: str = "float32"
    rotary_dtype: str = "float32"
    param_init_type: str = "float32"
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
    use_flash_attention: bool = True
    use_ring_attention: bool = False
    use_attn_mask_compression: bool = False
    use_eod_attn_mask_compression: bool = False
    parallel_optimizer: bool = False
    fine_grain_interleave: int = 1
    pp_interleave_num: int = 1
    offset: int | list[int] | list[list[int]] = 0
    initializer_range: float = 0.02
    checkpoint_name_or_path: str = ""
    repetition_penalty: float = 1.0
    max_decode_length: int = 1024
    block_size: int = 16
    num_blocks: int = 512
    top_k: int = 50
    top_p: float = 1.0
    do_sample: bool = False
    quant_config: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    llm_backend: str = ""
    fused_rms_norm: bool = False
    input_sliced_sig: bool = False
    rmsnorm_compute_2d: bool = False
    chunk_prefill: bool = False
    calculate_per_token_loss: bool = True
    pipeline_stage: dict[str, Any] | None = None
    return_hidden_states: bool = False
    # Beyond MindFormers.
    hidden_act: str = "silu"
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    pretraining_tp: int = 1
    use_cache: bool = True
    reset_position_ids: bool = False
    norm_init_type: str | None = "float32"
    # Of other sections of a MindFormers run.
    enable_parallel_optimizer: bool | None = None
    gradient_accumulation_shard: bool | None = None
    gradient_accumulation_steps: int = 1

    @property
    def head_dim(self) -> int:
        """Width of one attention head: as stated, else `hidden_size / num_attention_heads`."""
        stated = vars(self).get(STATED_HEAD_DIM)
        return self.hidden_size // self.num_attention_heads if stated is None else stated

    @head_dim.setter
    def head_dim(self, value: int | None) -> None:
        value = plain(value, int)
        if value is not None and (not fits(value, int) or value < 1):
            raise ConfigError(f"head_dim must be None or an int of at least 1, got {shown(value)}")
        follows = value is None or value * self.num_attention_heads == self.hidden_size
        vars(self)[STATED_HEAD_DIM] = None if follows else value

    @property
    def states_head_dim(self) -> bool:
        """Whether heads have another width than the one that follows from `hidden_size`, as in Mistral-Nemo."""
        return vars(self).get(STATED_HEAD_DIM) is not None

    def __iter__(self) -> Iterator[str]:
        """The names as transformers', less `ignore_token_id`, a label, of which it would warn that it is no token."""
        return (name for name in super().__iter__() if name != "ignore_token_id")

    @property
    def extension(self) -> Extension:
        """RoPE in MindFormers' words."""
        return Extension(self.rope_theta, self.extend_method, self.scaling_factor)

    @property
    def rope(self) -> RopeSettings:
        """What this model's rotary embedding is built from."""
        return self.extension.settings(self.head_dim, self.max_position_embeddings)

    @property
    def embedding_dtype(self) -> str:
        """The type that the embedding is stored in."""
        return self.embedding_init_type or self.param_init_type

    @property
    def norm_dtype(self) -> str:
        """The type that norm weights are stored in: in MindFormers always the one that norms compute in."""
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
    def shards_optimizer(self) -> bool:
        """Whether weights, gradients and optimizer states are sharded: as the run says, else the model's own switch."""
        run = self.enable_parallel_optimizer
        return self.parallel_optimizer if run is None else run

    @property
    def keeps_whole_gradients(self) -> bool:
        """Whether each rank sums whole gradients over the micro-batches of a step, though all else is sharded."""
        degrees = self.parallel_config
        steps = degrees.micro_batch_num if degrees.pipeline_stage > 1 else self.gradient_accumulation_steps
        return steps > 1 and self.shards_optimizer and self.gradient_accumulation_shard is False

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a document, none if there is no such token."""
        eos = self.eos_token_id
        return tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
