"""The ImageGPT configuration: a GPT-2 whose words are colours, every field and the rules between them; no tensors."""

from typing import Any, ClassVar

from modelwright.configs.activations import ACTIVATION_NAMES
from modelwright.configs.base import MOST_LAYERS, CheckedConfig, require, require_divides, require_one_of


class ImageGPTConfig(CheckedConfig):
    """ImageGPT (Chen et al., "Generative Pretraining from Pixels", ICML 2020); names and defaults are official.

    The last token of the vocabulary starts a picture and is never predicted, so the head is `vocab_size - 1` wide.
    Each official field may also go by its common name (`attribute_map`); the two must not differ.
    """

    model_type = "imagegpt"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    aliases: ClassVar[frozenset[str]] = frozenset(attribute_map)

    vocab_size: int = 512 + 1
    n_positions: int = 32 * 32
    n_embd: int = 512
    n_layer: int = 24
    n_head: int = 8
    n_inner: int | None = None
    activation_function: str = "quick_gelu"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = False
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    add_cross_attention: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @classmethod
    def merge(cls, values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """`CheckedConfig.merge`; an override of one name of a thing also replaces the file's other name of it."""
        replaced = {name for pair in cls.attribute_map.items() if overrides.keys() & set(pair) for name in pair}
        return super().merge({key: value for key, value in values.items() if key not in replaced}, overrides)

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super().normalise(values)
        for common, official in cls.attribute_map.items():
            if common in values:
                value = values.pop(common)
                kept = values.setdefault(official, value)
                require(kept == value, f"{official} ({kept}) contradicts {common} ({value}), another name of it")
        return values

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.n_embd // self.n_head

    @property
    def inner_width(self) -> int:
        """Hidden channels of each block's feed-forward: `n_inner`, or four times `n_embd`."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def start_token_id(self) -> int:
        """The token before a picture's first pixel, and the number of colours: they are the tokens below it."""
        return self.vocab_size - 1

    def check_rules(self) -> None:
        self.require_at_least(2, "vocab_size")  # a colour and the start
        self.require_at_least(1, "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
        self.require_at_least(0, "initializer_range")
        self.require_at_most(MOST_LAYERS, "n_layer")
        require_divides("n_head", self.n_head, "n_embd", self.n_embd)
        require_one_of("activation_function", self.activation_function, ACTIVATION_NAMES)
        require(self.layer_norm_epsilon > 0, f"layer_norm_epsilon must be above 0, got {self.layer_norm_epsilon}")
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        pad, rows = self.pad_token_id, self.vocab_size
        require(pad is None or -rows <= pad < rows, f"pad_token_id ({pad}) must be below vocab_size ({rows})")
        crossing = self.add_cross_attention
        require(not crossing, f"add_cross_attention must be False: ImageGPT reads no encoder; got {crossing}")
