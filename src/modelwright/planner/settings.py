"""What a config states about types, layout and training, in the planner's own terms; it reckons nothing.

A family says it with `RunSettings`, whose reference stands in its record; `plain_settings` serves a config that states
types and nothing else.
"""

from dataclasses import dataclass, field, replace

from modelwright.configs import CheckedConfig
from modelwright.configs.engine import QuantSettings, read_quantization
from modelwright.errors import RequestError
from modelwright.planner.layout import Layout
from modelwright.planner.precision import Precision, Quant, float_type, kv_type, quantization
from modelwright.planner.stored import StoredWeights


@dataclass(frozen=True)
class Types:
    """The types that a config states, as it spells them, of weights by their part and of products.

    With `norms_stay` the norms keep their type where another is asked for the model.
    """

    weights: str
    embedding: str
    norms: str
    compute: str
    norms_stay: bool = False

    @classmethod
    def uniform(cls, dtype: str) -> "Types":
        """One type for all."""
        return cls(dtype, dtype, dtype, dtype)

    def moved(self, dtype: str) -> "Types":
        """The types where `dtype` is asked for."""
        return replace(self.uniform(dtype), norms=self.norms if self.norms_stay else dtype)

    def checked(self) -> "Types":
        """The same under their plain names; a RequestError for one that is no type of a plan."""
        names = {
            name: float_type(getattr(self, name), "dtype") for name in ("weights", "embedding", "norms", "compute")
        }
        return replace(self, **names)


@dataclass(frozen=True)
class RunSettings:
    """What a config states about a run of its model.

    Attributes:
        types: of weights and products.
        layout: over several devices; None where one is meant.
        expert_ranks: over how many ranks whole experts are shared out; None where the planner may choose.
        explicit_attention: whether attention scores are written out, instead of computed by a fused kernel.
        recompute: in training, whether all layers are recomputed, or how many leading ones of each pipeline stage.
        batch: sequences of a micro-batch.
        row: tokens of a sequence in training; None where the config does not say.
    """

    types: Types = field(default_factory=lambda: Types.uniform("float32"))
    layout: Layout | None = None
    expert_ranks: int | None = None
    explicit_attention: bool = False
    recompute: bool | tuple[int, ...] = False
    batch: int = 1
    row: int | None = None


def plain_settings(config: CheckedConfig) -> RunSettings:
    """Those of a config that states one type, or none, which means float32."""
    stated = config.dtype or config.get_text_config().dtype or "float32"
    return RunSettings(Types.uniform(str(stated)))


def precision_of(
    config: CheckedConfig,
    types: Types,
    dtype: str | None,
    kv_dtype: str | None,
    quant: str | None,
    foreign: StoredWeights | None = None,
) -> Precision:
    """The types of a plan: as asked for, else those that the config states, `types`.

    A config's `quant_config` says what is quantized, and how where `quant` says what; `foreign` is how another program
    has stored it, which counts where `quant` does not ask for something else.

    Raises:
        RequestError: an option names no type.
    """
    asked = None if dtype is None else float_type(dtype, "dtype")
    cached = None if kv_dtype is None else kv_type(kv_dtype, "kv_dtype")
    method = None if quant is None else quantization(quant, "quant")
    stored = read_quantization(getattr(config, "quant_config", None)) or QuantSettings()
    used = types.checked() if asked is None else types.moved(asked).checked()
    return Precision(
        weights=used.weights,
        embedding=used.embedding,
        norms=used.norms,
        compute=used.compute,
        kv=cached or stored.kv_cache or (foreign.kv if foreign else None) or used.compute,
        quant=method or _known_quant(stored.weights),
        as_stored=foreign is not None and bool(foreign.groups) and method is None,
        group=stored.group,
        symmetric=stored.symmetric,
        head=stored.head,
    )


def explicit_attention(settings: RunSettings, attention: str | None) -> bool:
    """Whether scores are written out: `eager` as asked, else as the config states.

    Raises:
        RequestError: `attention` is neither `fused` nor `eager`.
    """
    if attention not in (None, "fused", "eager"):
        raise RequestError(f"attention must be fused or eager, got {attention!r}", field="attention")
    return settings.explicit_attention if attention is None else attention == "eager"


def _known_quant(name: str | None) -> Quant | None:
    return None if name is None else quantization(name, "quant_config")
