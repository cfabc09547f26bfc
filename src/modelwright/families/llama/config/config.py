"""The Llama configuration in both dialects: how it is read, kept and written; its rules and views stand beside it."""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, ClassVar

from modelwright.configs.base import own_fields, require
from modelwright.configs.engine import EngineSettings, weight_quantization
from modelwright.configs.field_types import ReadOnlyDict, dtype_name, torch_dtype
from modelwright.configs.mindformers import merge_run, to_run
from modelwright.configs.moe import MoEConfig
from modelwright.configs.parallel import ParallelConfig, ParallelSettings
from modelwright.configs.rope_extensions import HF_DYNAMIC, extend_method, read_hugging_face, rotated_whole
from modelwright.configs.router_outputs import OfExperts, RouterOutputs
from modelwright.configs.sampling import SamplingSettings
from modelwright.configs.training import TrainingSettings
from modelwright.configs.yaml_file import read_yaml, write_yaml
from modelwright.families.llama.config.dialects import (
    as_llama,
    canonical,
    completed,
    dialect_of,
    merge_rope,
    moved_dtype,
    without_overridden_rope,
)
from modelwright.families.llama.config.fields import STATED_HEAD_DIM, LlamaFields
from modelwright.families.llama.config.names import (
    ALIASES,
    DTYPE_FIELDS,
    HUGGING_FACE,
    KIN,
    MINDFORMERS,
    MINDFORMERS_FIELDS,
    NO_KIN,
    WRITTEN,
)
from modelwright.families.llama.config.rules import check_llama
from modelwright.families.llama.config.run import RUN, RUN_FIELDS, Run, set_aside
from modelwright.families.llama.config.views import (
    engine_settings,
    idle_fields,
    padding_by_id,
    parallel_settings,
    run_values,
    sampling_settings,
    training_settings,
)
from modelwright.families.llama.config.widths import feed_forward_width

_PARTS = {"parallel_config": ParallelConfig, "moe_config": MoEConfig}


class LlamaConfig(RouterOutputs, LlamaFields):
    """Llama 1 to 3.3 and its kin, from MindFormers' 61 fields or from a Hugging Face config.

    Fields are named as in Hugging Face where it has a name; MindFormers' (`num_layers`, `num_heads`, `n_kv_heads`,
    `max_position_embedding`, `theta`, `init_method_std`) read, set and build the same fields. `intermediate_size`,
    `num_key_value_heads` and `max_position_embeddings` hold numbers, resolved when the config is built.

    What is left out takes the default of the config's `dialect`: `"hugging_face"`, unless it says `"mindformers"`. The
    dialect is stated, never guessed from the names in use: by `dialect=`, by `from_mindformers`, or by the file. A
    MindFormers YAML is in MindFormers' dialect; so is a JSON file that MindFormers wrote, which bears its
    `mindformers_version`; any other `config.json` is Hugging Face's unless its `dialect` says otherwise, as those say
    that are saved from a MindFormers run. Files that earlier releases saved state no dialect, and state every
    field that the two have different defaults for.

    `parallel_config` and `moe_config` are dicts or objects, and read as `ParallelConfig` and `MoEConfig`. RoPE is read
    from `theta`, `extend_method` and `scaling_factor`, or from `rope_theta` with `rope_parameters` or `rope_scaling`.
    `dtype` is the `torch.dtype` of `param_init_type`. Where computing and rotating used the same type, setting it later
    takes them along, as transformers expects. A negative `pad_token_id` means none. A config with experts has the
    attributes of `RouterOutputs`, where `router_aux_loss_coef` is another name of `moe_config.aux_loss_factor`.
    """

    model_type = "llama"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map: ClassVar[dict[str, str]] = dict(ALIASES)
    aliases: ClassVar[frozenset[str]] = frozenset(ALIASES) | {
        "attention_bias",
        "output_router_logits",
        "head_dim",
        "rope_parameters",
        "rope_scaling",
    }

    num_experts_per_tok = OfExperts()

    @classmethod
    def without_strange_keys(cls, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """As `CheckedConfig.without_strange_keys`; the parts keep theirs themselves."""
        values, strange = super().without_strange_keys(values)
        parts = {name: part.read_file(values[name], name) for name, part in _PARTS.items() if name in values}
        return values | parts, strange

    @classmethod
    def merge(cls, values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """`CheckedConfig.merge` over one set of names, so that an override replaces a file's other names of a thing."""
        values = completed(values | {"dialect": overrides.get("dialect") or dialect_of(values)})
        values = merge_rope(values, values.get("max_position_embeddings") or cls.max_position_embeddings)
        overrides = dict(overrides)
        for name in ("torch_dtype", "dtype"):
            if (dtype := overrides.pop(name, None)) not in (None, "auto"):
                values |= moved_dtype(values, dtype)
        overrides = canonical(overrides)
        if not overrides.keys().isdisjoint(("hidden_size", "num_attention_heads")) and _states_head_dim(values):
            del values["head_dim"]  # it followed from what is overridden
        for name, part in _PARTS.items():
            if values.get(name) is not None and isinstance(overrides.get(name), dict):
                overrides[name] = part.read(values[name], name).changed_by(overrides[name], name)
        return super().merge(without_overridden_rope(values, overrides), overrides)

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        cls._refuse_misspelt(values)
        values = as_llama(completed(rotated_whole(values)))
        pad = values.get("pad_token_id")
        if isinstance(pad, int) and pad < 0:
            values["pad_token_id"] = None
        values = super().normalise(_resolved(values))
        for name, part in _PARTS.items():
            values[name] = part.read(values.get(name), name)
        return merge_rope(values, values["max_position_embeddings"])

    @classmethod
    def from_mindformers(cls, source: str | PathLike | Mapping[str, Any], **overrides: Any) -> "LlamaConfig":
        """The config of a MindFormers run: a YAML file, or what one holds, under `overrides` in either vocabulary.

        Its top-level `parallel_config`, `moe_config`, `recompute_config`, `swap_config`, `calculate_per_token_loss` and
        `runner_config.batch_size` override `model.model_config`, as in MindFormers' trainer. The other keys of the run
        are kept for `to_mindformers` and listed by `fields_without_effect`, by their path.

        Raises:
            ConfigError: the file cannot be read, is no Llama's, or breaks a rule.
        """
        run = source if isinstance(source, Mapping) else read_yaml(source)
        values, unused = set_aside(merge_run(run), own_fields(cls))
        config = cls.from_dict(values, **{"dialect": MINDFORMERS} | overrides)
        vars(config)[RUN] = Run.of(run, unused)
        return config

    def to_mindformers(self, path: str | PathLike | None = None) -> dict[str, Any]:
        """The MindFormers run config of this model; with `path` it is also written there as YAML.

        Raises:
            ConfigError: MindFormers' Llama has no way to say something that this config says.
        """
        self.check()
        self.check_mindformers()
        values = {name: getattr(self, name) for name in (*MINDFORMERS_FIELDS, *RUN_FIELDS)} | self.unknown_keys()
        values["pad_token_id"] = -1 if self.pad_token_id is None else self.pad_token_id
        if self.norm_init_type is not None:  # no field of MindFormers', which keeps unknown keys
            values["norm_init_type"] = self.norm_init_type
        read: Run = vars(self).get(RUN, Run())
        values |= read.unused(self)
        run = to_run(values | {name: getattr(self, name).to_dict() for name in _PARTS}, read.rest)
        if path is not None:
            write_yaml(run, path)
        return run

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _PARTS:
            value = _PARTS[key].read(value, key)
        elif key in DTYPE_FIELDS:
            value = dtype_name(value)
        elif key == "extend_method":
            value = extend_method(value)
        super().__setattr__(key, value)

    @property
    def kin(self) -> str:
        """The `model_type` of the model of Hugging Face's that this is: a Llama, a Mistral, a Mixtral or a Qwen2.

        A Llama with experts that no Mixtral has is of none of them.
        """
        if self.has_experts:
            return "mixtral" if self.beyond_transformers() is None else NO_KIN
        if self.qkv_has_bias and not self.attn_proj_has_bias:
            return "qwen2"
        read = self.read_values().get("model_type")
        return "mistral" if read == "mistral" and not self.qkv_has_bias and not self.attn_proj_has_bias else "llama"

    @property
    def dtype(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`param_init_type`, the type that weights are stored in, as the `torch.dtype` that transformers has here."""
        return torch_dtype(self.param_init_type)

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
    def rope_parameters(self) -> dict[str, Any]:
        """The same RoPE as transformers v5 writes it, NTK as a plain base."""
        return ReadOnlyDict(self.extension.to_hugging_face(), "rope_parameters")

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
        return None if scaling == {"rope_type": "default"} else ReadOnlyDict(scaling, "rope_scaling")

    @rope_scaling.setter
    def rope_scaling(self, value: dict[str, Any] | None) -> None:
        self.rope_parameters = value

    @property
    def padding_by_id(self) -> int | None:
        """The token that is padding wherever it stands: `pad_token_id` in MindFormers' dialect.

        In Hugging Face's there is none: an attention mask says what is padding, and labels of -100 what is not learned.
        """
        return padding_by_id(self)

    @property
    def engine(self) -> EngineSettings:
        """How a serving engine runs this model."""
        return engine_settings(self)

    @property
    def sampling(self) -> SamplingSettings:
        """How the next token is chosen by default."""
        return sampling_settings(self)

    @property
    def parallel(self) -> ParallelSettings:
        """How this model is laid out over devices."""
        return parallel_settings(self)

    @property
    def training(self) -> TrainingSettings:
        """How a trainer feeds this model and weighs its loss."""
        return training_settings(self)

    def run_values(self) -> dict[str, Any]:
        """What its `parallel` and `training` views state of a run, where they differ from a config that states none."""
        return run_values(self, self.defaults())

    def routed(self) -> dict[str, Any]:
        """See `RouterOutputs`."""
        moe = self.moe_config
        if not self.has_experts:
            return {}
        return {
            "output_router_logits": False,
            "num_experts": moe.expert_num,
            "num_experts_per_tok": moe.num_experts_chosen,
        }

    def balance_factor(self) -> float:
        moe = self.moe_config
        require(
            not moe.z_loss_factor and not moe.aux_loss_types,
            "router_aux_loss_coef and output_router_logits stand for one balance loss, that of experts: z_loss_factor "
            f"({moe.z_loss_factor}) must be 0 and aux_loss_types ({moe.aux_loss_types}) must be None",
        )
        return moe.aux_loss_factor

    def set_balance_factor(self, value: float) -> None:
        self.moe_config = self.moe_config.changed_by({"aux_loss_factor": value}, "moe_config")

    def idle_fields(self) -> dict[str, str]:
        """The fields that nothing reads with the config's other values, each with the reason."""
        return idle_fields(self)

    def fields_without_effect(self) -> dict[str, str]:
        """As `CheckedConfig.fields_without_effect`, with the unknown keys of a file's parts and of a run."""
        strange = {name: getattr(self, name).strange() for name in _PARTS}
        inside = {f"{name}.{key}": reason for name, keys in strange.items() for key, reason in keys.items()}
        return super().fields_without_effect() | inside | vars(self).get(RUN, Run()).without_effect

    def defaults(self) -> "LlamaConfig":
        """The config of the same dialect whose fields were all left out."""
        return type(self)(dialect=self.dialect)

    def to_dict(self) -> dict[str, Any]:
        """Every field, and beside them what Hugging Face's Llama calls the same things; `from_dict` reads it back."""
        views = {
            "theta": self.rope_theta,
            "rope_theta": self.rope_parameters["rope_theta"],
            "rope_parameters": dict(self.rope_parameters),
            "rope_scaling": None if self.rope_scaling is None else dict(self.rope_scaling),
            "head_dim": self.head_dim,
            "dtype": self.param_init_type,
            "parallel_config": self.parallel_config.to_dict(),
            "moe_config": self.moe_config.to_dict(),
        }
        if self.qkv_has_bias == self.attn_proj_has_bias:
            views["attention_bias"] = self.attention_bias
        if weight_quantization(self) is not None:  # whoever reads the weights must know that they are integers
            views |= {"quantization_config": self.quant_config, "quant_config": None}
        values = super().to_dict() | views
        for kept in (STATED_HEAD_DIM, RUN):
            values.pop(kept, None)
        return values

    def essential_keys(self) -> Iterable[str]:
        """Those of `WRITTEN` where the config was read from no file of Hugging Face's."""
        own = self.dialect == HUGGING_FACE and bool(self.read_values())
        scaled = () if self.rope_scaling is None else ("rope_scaling",)
        return () if own else (*WRITTEN, *scaled)

    def read_values(self) -> Mapping[str, Any]:
        """As `CheckedConfig.read_values`; MindFormers' names are nothing that a `config.json` says again."""
        return super().read_values() if self.dialect == HUGGING_FACE else {}

    def as_written(self, values: dict[str, Any]) -> dict[str, Any]:
        """As `CheckedConfig.as_written`, under the `model_type` and the architectures of its kin."""
        kin, named = self.kin, values.get("architectures")
        values = values | {"model_type": kin}
        if named and kin in KIN:
            values["architectures"] = [name.replace(KIN["llama"], KIN[kin], 1) for name in named]
        if kin == "mixtral":
            moe = self.moe_config
            values = {key: value for key, value in values.items() if key not in ("attention_bias", "mlp_bias")}
            values |= {"num_local_experts": moe.expert_num, "num_experts_per_tok": moe.num_experts_chosen}
            values |= {"router_aux_loss_coef": 0.0 if moe.aux_loss_types else moe.aux_loss_factor}
            values.setdefault("sliding_window", None)
            if not self.states_head_dim and self.read_values().get("head_dim", 0) is None:
                values["head_dim"] = None
        return values

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write a config.json that transformers' model of this `kin` reads as the same one, see `not_for_transformers`.

        Raises:
            ConfigError: Hugging Face's Llama has no way to say it (`check_hugging_face`).
        """
        self.check_hugging_face()
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def check_hugging_face(self) -> None:
        """Raise `ConfigError`, with the reason, for what Hugging Face's Llama cannot express."""
        require(
            self.extend_method != "DYNAMIC_NTK",
            'extend_method "DYNAMIC_NTK" has no rope type in Hugging Face ("dynamic" grows otherwise)',
        )

    def not_for_transformers(self) -> str | None:
        """Why a checkpoint of this config is read by modelwright alone; None where transformers reads it too."""
        if self.attn_proj_has_bias and not self.qkv_has_bias:
            return "attention has a bias on its output alone (attn_proj_has_bias), which no model of transformers has"
        beyond = self.beyond_transformers()
        return beyond

    def beyond_transformers(self) -> str | None:
        """The first that no Mixtral of Hugging Face's has of a model with experts; None where it is one.

        Capacity is left out: it drops tokens in training alone. So are the types of router and norms, which round.
        """
        moe = self.moe_config
        if not self.has_experts:
            return None
        rules: dict[str, tuple[Any, bool, str]] = {
            "shared_expert_num": (moe.shared_expert_num, not moe.shared_expert_num, "0"),
            "use_gating_sigmoid": (moe.use_gating_sigmoid, not moe.use_gating_sigmoid, "False"),
            "topk_method": (moe.topk_method, moe.topk_method == "greedy", '"greedy"'),
            "norm_topk_prob": (moe.norm_topk_prob, moe.norm_topk_prob, "True"),
            "num_experts_chosen": (moe.num_experts_chosen, moe.num_experts_chosen > 1, "at least 2"),
            "routed_scaling_factor": (moe.routed_scaling_factor, moe.routed_scaling_factor == 1, "1"),
            "balance_via_topk_bias": (moe.balance_via_topk_bias, not moe.balance_via_topk_bias, "False"),
            "qkv_has_bias": (self.qkv_has_bias, not self.qkv_has_bias, "False"),
            "attn_proj_has_bias": (self.attn_proj_has_bias, not self.attn_proj_has_bias, "False"),
        }
        broken = ((name, value, rule) for name, (value, holds, rule) in rules.items() if not holds)
        return next((f"{name} must be {rule} in a Mixtral, got {value}" for name, value, rule in broken), None)

    def check_mindformers(self) -> None:
        """Raise `ConfigError`, with the reason, for what MindFormers' Llama cannot express."""
        require(
            self.extend_method != HF_DYNAMIC,
            'rope type "dynamic" has no extend_method in MindFormers ("DYNAMIC_NTK" grows otherwise)',
        )
        width, wanted = self.head_dim, self.hidden_size / self.num_attention_heads
        require(
            not self.states_head_dim,
            f"head_dim ({width}) must be hidden_size / num_attention_heads ({wanted:g}) in MindFormers, which has no "
            "field for it",
        )
        dropout, reset = self.attention_dropout, self.reset_position_ids
        require(dropout == 0, f"attention_dropout ({dropout}) must be 0 in MindFormers, which drops no attention")
        require(not reset, "reset_position_ids (True) has no field in MindFormers, where positions run on")

    def check_rules(self) -> None:
        check_llama(self)
        for view in (engine_settings, sampling_settings, training_settings, parallel_settings):
            view(self)  # checked as it is built

    def _require_one_bias(self) -> None:
        qkv, out = self.qkv_has_bias, self.attn_proj_has_bias
        require(
            qkv == out,
            f"Hugging Face's attention_bias is one switch: qkv_has_bias ({qkv}) must equal attn_proj_has_bias ({out})",
        )


def _states_head_dim(values: Mapping[str, Any]) -> bool:
    """Whether `values` hold the `head_dim` that follows from the others."""
    numbers = [values.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim")]
    hidden, heads, stated = (number if isinstance(number, int) else 0 for number in numbers)
    return stated > 0 and stated * heads == hidden


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
