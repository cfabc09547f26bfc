"""The DeepSeek-V2 configuration: every field, its default and the rules between them; no tensors."""

from collections.abc import Iterator
from typing import Any, ClassVar

from modelwright.configs.activations import ACTIVATION_NAMES
from modelwright.configs.base import (
    MOST_LAYERS,
    CheckedConfig,
    require,
    require_divides,
    require_experts,
    require_one_of,
)
from modelwright.configs.field_types import ReadOnlyDict
from modelwright.configs.rope import (
    RopeSettings,
    agreeing_rope_views,
    check_rope_agreement,
    check_rope_theta,
    parse_rope_scaling,
)
from modelwright.configs.rope_extensions import rotated_whole
from modelwright.configs.router_outputs import RouterOutputs
from modelwright.errors import ConfigError

TOPK_METHODS = ("greedy", "group_limited_greedy", "noaux_tc")
SCORING_FUNCTIONS = ("softmax", "sigmoid")
_OF_EXPERTS = (
    "moe_intermediate_size",
    "n_shared_experts",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "topk_method",
    "n_group",
    "topk_group",
    "norm_topk_prob",
    "scoring_func",
    "aux_loss_alpha",
    "seq_aux",
    "topk_bias_update_rate",
)
_WHICH_LAYERS = ("first_k_dense_replace", "moe_layer_freq")
_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


class DeepseekV2Config(RouterOutputs, CheckedConfig):
    """DeepSeek-V2, -V2-Lite, -V2.5, -Coder-V2 and the language models of DeepSeek-VL2 (arXiv 2405.04434).

    Field names and defaults are the official ones. `use_attention_bias` is an alias of `attention_bias`; the official
    spelling `topk_method="gready"` is read as `"greedy"`. RoPE is read from `rope_theta`/`rope_scaling` or from
    transformers v5's `rope_parameters`, and both are kept and saved. Ours beyond the official fields: `ffn_dropout`,
    `qkv_concat`, `gated_mlp`, `topk_bias_update_rate`. A config with experts has the attributes of `RouterOutputs`,
    where `router_aux_loss_coef` is another name of `aux_loss_alpha`.
    """

    model_type = "deepseek_v2"
    base_config_key = "language_config"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    aliases: ClassVar[frozenset[str]] = frozenset(
        {"use_attention_bias", "head_dim", "qk_head_dim", "output_router_logits"}
    )

    vocab_size: int = 102400
    hidden_size: int = 4096
    intermediate_size: int = 11008
    moe_intermediate_size: int = 1407
    num_hidden_layers: int = 30
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    n_shared_experts: int | None = None
    n_routed_experts: int | None = None
    num_experts_per_tok: int | None = None
    ep_size: int = 1
    routed_scaling_factor: float = 1.0
    kv_lora_rank: int | None = 512
    q_lora_rank: int | None = 1536
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    topk_method: str = "greedy"
    n_group: int | None = None
    topk_group: int | None = None
    moe_layer_freq: int = 1
    first_k_dense_replace: int = 0
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"
    aux_loss_alpha: float = 0.001
    seq_aux: bool = True
    topk_bias_update_rate: float = 0.0
    hidden_act: str = "silu"
    gated_mlp: bool = True
    ffn_dropout: float = 0.0
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 100000
    eos_token_id: int | list[int] | None = 100001
    pretraining_tp: int = 1
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    use_mla: bool = True
    qkv_concat: bool = False

    @classmethod
    def merge(cls, values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """`CheckedConfig.merge`; an override of one name of a thing also replaces the file's other names of it."""
        if overrides.get("rope_parameters") is not None:
            values = {key: value for key, value in values.items() if key not in _ROPE_KEYS}
        elif any(key in overrides for key in _ROPE_KEYS):
            values = values | cls._rope_views(values)
            del values["rope_parameters"]
        if overrides.keys() & {"attention_bias", "use_attention_bias"}:
            values = {
                key: value for key, value in values.items() if key not in ("attention_bias", "use_attention_bias")
            }
        return super().merge(values, overrides)

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().normalise(rotated_whole(values))
        alias = values.pop("use_attention_bias", None)
        if alias is not None:
            official = values.setdefault("attention_bias", alias)
            require(
                official == alias, f"attention_bias ({official}) contradicts its alias use_attention_bias ({alias})"
            )
        if values.get("num_key_value_heads", 0) is None:
            values["num_key_value_heads"] = values.get("num_attention_heads", cls.num_attention_heads)
        if "router_aux_loss_coef" in values:
            values.setdefault("aux_loss_alpha", values.pop("router_aux_loss_coef"))
        if values.get("topk_method") == "gready":
            values["topk_method"] = "greedy"
        return values | cls._rope_views(values)

    def __setattr__(self, key: str, value: Any) -> None:
        """As `CheckedConfig` sets; one view of RoPE brings the two others along, and each is set as a whole."""
        if key not in _ROPE_KEYS:
            return super().__setattr__(key, value)
        views = {key: value}
        if all(name in vars(self) for name in _ROPE_KEYS):
            views = self._rope_after(key, value)
        for name, view in views.items():
            super().__setattr__(name, ReadOnlyDict(view, name) if isinstance(view, dict) else view)

    def _rope_after(self, key: str, value: Any) -> dict[str, Any]:
        """All three views of RoPE once `key` has become `value`; a value that is no RoPE is left to `check`."""
        old = {name: vars(self)[name] for name in _ROPE_KEYS}
        stated = value if isinstance(value, dict) else {}
        if key == "rope_theta":
            said = {"rope_theta": value, "rope_scaling": old["rope_scaling"]}
        else:
            said = {"rope_theta": stated.get("rope_theta", old["rope_theta"]), key: value}
        return agreeing_rope_views(said, self.max_position_embeddings, default_theta=old["rope_theta"])

    @classmethod
    def _rope_views(cls, values: dict[str, Any]) -> dict[str, Any]:
        context = values.get("max_position_embeddings", cls.max_position_embeddings)
        return agreeing_rope_views(values, context, default_theta=cls.rope_theta)

    @property
    def head_dim(self) -> int:
        """The width that RoPE turns: `qk_rope_head_dim` with MLA (as in transformers), else a whole head."""
        return self.qk_rope_head_dim if self.use_mla else self.hidden_size // self.num_attention_heads

    @head_dim.setter
    def head_dim(self, value: int | None) -> None:
        """A file may state it; with MLA writers disagree on its meaning and it says nothing."""
        if value is not None and not self.use_mla:
            require(
                value == self.head_dim,
                f"head_dim ({value}) must be hidden_size // num_attention_heads ({self.head_dim})",
            )

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head: `qk_nope_head_dim + qk_rope_head_dim` with MLA, else `head_dim`."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.use_mla else self.head_dim

    @qk_head_dim.setter
    def qk_head_dim(self, value: int | None) -> None:
        if value is not None and self.use_mla:
            rule = f"qk_head_dim ({value}) must be qk_nope_head_dim + qk_rope_head_dim ({self.qk_head_dim})"
            require(value == self.qk_head_dim, rule)

    @property
    def kv_numbers_per_token(self) -> int:
        """Numbers that one layer caches per token: latent and rotary key with MLA, else keys and values."""
        if self.use_mla:
            return (self.kv_lora_rank or 0) + self.qk_rope_head_dim
        return 2 * self.num_key_value_heads * self.head_dim

    @property
    def rope(self) -> RopeSettings:
        """What this model's rotary embedding is built from."""
        scaling = parse_rope_scaling(self.rope_scaling, self.max_position_embeddings)
        return RopeSettings(float(self.rope_theta), self.head_dim, self.max_position_embeddings, scaling)

    def is_moe_layer(self, index: int) -> bool:
        """Whether layer `index` (from 0) routes to experts."""
        if self.n_routed_experts is None or index < self.first_k_dense_replace:
            return False
        return index % self.moe_layer_freq == 0

    def routed(self) -> dict[str, Any]:
        """See `RouterOutputs`."""
        if not any(self.is_moe_layer(index) for index in range(self.num_hidden_layers)):
            return {}
        return {"output_router_logits": False, "num_experts": self.n_routed_experts}

    def balance_factor(self) -> float:
        return self.aux_loss_alpha

    def set_balance_factor(self, value: float) -> None:
        self.aux_loss_alpha = value

    def not_for_transformers(self) -> str | None:
        """The first that transformers' DeepSeek-V2 lacks, refuses or does not read; None where it computes the same.

        Dropout and balance losses are left out: they change training alone.
        """
        heads, layers = self.num_attention_heads, range(self.num_hidden_layers)
        routed = [self.is_moe_layer(index) for index in layers]
        rules: dict[str, tuple[bool, str]] = {
            "use_mla": (self.use_mla, "True"),
            "num_key_value_heads": (self.num_key_value_heads == heads, f"num_attention_heads ({heads})"),
            "hidden_size": (self.hidden_size % heads == 0, f"divisible by num_attention_heads ({heads})"),
            "gated_mlp": (self.gated_mlp, "True"),
            "n_routed_experts": (self.n_routed_experts is not None, "a number"),
            "n_shared_experts": (self.n_shared_experts is not None, "a number"),
            "moe_layer_freq": (routed == [index >= self.first_k_dense_replace for index in layers], "1"),
            "topk_method": (self.topk_method != "noaux_tc" or not any(routed), '"greedy" or "group_limited_greedy"'),
            "scoring_func": (self.scoring_func == "softmax" or not any(routed), '"softmax"'),
            "norm_topk_prob": (not self.norm_topk_prob or not any(routed), "False"),
        }
        said = (
            f"{name} must be {rule}, got {getattr(self, name)}" for name, (holds, rule) in rules.items() if not holds
        )
        return next((f"of its DeepSeek-V2 {each}" for each in said), None)

    def idle_fields(self) -> dict[str, str]:
        """The fields that nothing reads with the config's other values, each with the reason."""
        return dict(self._idle())

    def _idle(self) -> Iterator[tuple[str, str]]:
        latent = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        if self.use_mla:
            yield "num_key_value_heads", "with use_mla all heads share one latent"
        else:
            yield from dict.fromkeys(latent, "use_mla is off: there is no latent").items()
        routed = [self.is_moe_layer(index) for index in range(self.num_hidden_layers)]
        if all(routed):
            yield "intermediate_size", "every layer routes to experts, which are moe_intermediate_size wide"
        if not any(routed):
            idle = _OF_EXPERTS if self.n_routed_experts else (*_OF_EXPERTS, *_WHICH_LAYERS)
            yield from dict.fromkeys(idle, "no layer routes to experts").items()
            return
        if self.topk_method == "greedy":
            yield from dict.fromkeys(("n_group", "topk_group"), 'topk_method "greedy" has no groups').items()
        if self.aux_loss_alpha == 0:
            yield "seq_aux", "aux_loss_alpha is 0: there is no balance loss"

    def check_rules(self) -> None:
        self._check_ranges()
        self._check_attention()
        self._check_rope()
        self._check_routing()
        self._check_pretraining_tp()

    def _check_ranges(self) -> None:
        self.require_at_least(1, "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size")
        self.require_at_least(1, "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        self.require_at_least(1, "max_position_embeddings", "moe_layer_freq", "ep_size", "pretraining_tp")
        self.require_at_least(1, "n_shared_experts", "n_routed_experts", "num_experts_per_tok", "n_group", "topk_group")
        self.require_at_least(
            0, "first_k_dense_replace", "aux_loss_alpha", "initializer_range", "topk_bias_update_rate"
        )
        self.require_at_most(MOST_LAYERS, "num_hidden_layers")
        require_experts("n_routed_experts", self.n_routed_experts or 0, self.num_hidden_layers)
        pad, rows = self.pad_token_id, self.vocab_size
        require(pad is None or -rows <= pad < rows, f"pad_token_id ({pad}) must be below vocab_size ({rows})")
        for name in ("rms_norm_eps", "routed_scaling_factor"):
            require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("attention_dropout", "ffn_dropout"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.hidden_act not in ACTIVATION_NAMES:
            raise ConfigError(f'hidden_act must be one of {", ".join(ACTIVATION_NAMES)}; got "{self.hidden_act}"')

    def _check_attention(self) -> None:
        if not self.use_mla:
            require_divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
            require_divides(
                "num_key_value_heads", self.num_key_value_heads, "num_attention_heads", self.num_attention_heads
            )
            return
        require(not self.qkv_concat, "qkv_concat (True) needs use_mla=False, got use_mla=True")
        require(self.kv_lora_rank is not None, "use_mla=True needs a kv_lora_rank, got kv_lora_rank=None")
        for name in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"use_mla=True needs {name} of at least 1, got {name}={value}")

    def _check_rope(self) -> None:
        check_rope_theta(self.rope_theta)
        views = {key: getattr(self, key) for key in _ROPE_KEYS}
        views["rope_scaling"] = self.rope_scaling or {"type": "default"}
        check_rope_agreement(views, self.max_position_embeddings)
        name = "qk_rope_head_dim" if self.use_mla else "hidden_size / num_attention_heads"
        require(self.head_dim % 2 == 0, f"RoPE turns pairs: {name} ({self.head_dim}) must be even")
        self.rope  # noqa: B018  # checked as it is built

    def _check_routing(self) -> None:
        require_one_of("topk_method", self.topk_method, TOPK_METHODS)
        require_one_of("scoring_func", self.scoring_func, SCORING_FUNCTIONS)
        rate, method = self.topk_bias_update_rate, self.topk_method
        require(
            rate == 0 or method == "noaux_tc",
            f'topk_bias_update_rate ({rate}) needs topk_method "noaux_tc", got "{method}"',
        )
        experts, chosen = self.n_routed_experts, self.num_experts_per_tok
        if experts is None:
            return
        if chosen is None:
            raise ConfigError(f"n_routed_experts ({experts}) needs num_experts_per_tok, got None")
        require(chosen <= experts, f"num_experts_per_tok ({chosen}) must not exceed n_routed_experts ({experts})")
        if method != "greedy":
            self._check_groups(experts, chosen)

    def _check_groups(self, experts: int, chosen: int) -> None:
        groups, kept = self.n_group, self.topk_group
        if groups is None or kept is None:
            got = f"got n_group={groups}, topk_group={kept}"
            raise ConfigError(f'topk_method "{self.topk_method}" needs n_group and topk_group, {got}')
        require_divides("n_group", groups, "n_routed_experts", experts)
        require(kept <= groups, f"topk_group ({kept}) must not exceed n_group ({groups})")
        size = experts // groups
        require(
            chosen <= kept * size,
            f"num_experts_per_tok ({chosen}) must fit the chosen groups: "
            f"topk_group ({kept}) x {size} experts = {kept * size}",
        )
        require(
            self.topk_method != "noaux_tc" or size >= 2,
            f'topk_method "noaux_tc" ranks groups by their two best experts: n_routed_experts ({experts}) / n_group '
            f"({groups}) must be at least 2",
        )

    def _check_pretraining_tp(self) -> None:
        heads = self.num_attention_heads
        widths = {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
        }
        if self.use_mla:
            widths["num_attention_heads * v_head_dim"] = heads * self.v_head_dim
        else:
            widths["num_key_value_heads * head_dim"] = self.num_key_value_heads * self.head_dim
        if self.n_routed_experts is not None:
            widths["moe_intermediate_size"] = self.moe_intermediate_size
        for name, width in widths.items():
            require_divides("pretraining_tp", self.pretraining_tp, name, width)
