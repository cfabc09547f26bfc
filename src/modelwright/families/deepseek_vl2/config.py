"""The DeepSeek-VL2 configuration: vision tower, projector, language model and how they must fit; no tensors."""

import copy
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar, TypeVar

from transformers.configuration_utils import PreTrainedConfig

from modelwright.configs.base import MOST_LAYERS, CheckedConfig, require, require_divides, require_one_of
from modelwright.configs.tiling import image_token_count
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config

C = TypeVar("C", bound=CheckedConfig)
R = TypeVar("R")

GLOBAL_POOLS = ("map", "avg", "token", "")
WEIGHT_INITS = ("skip", "jax", "jax_nlhb", "moco", "")
PROJECTOR_TYPES = ("identity", "linear", "mlp_gelu", "downsample_mlp_gelu")
TILE_TAGS = ("2D", "1D")
GLOBAL_VIEW_POSITIONS = ("head", "tail")


class VisionEncoderConfig(CheckedConfig):
    """The SigLIP vision transformer (model_type `vision`); `image_size` and `patch_size` are in pixels.

    `model_name` is a label only: every size is read from its own field.
    """

    model_type = "vision"
    base_config_key = "vision_config"

    model_name: str = "siglip_large_patch16_384"
    image_size: int = 384
    patch_size: int = 16
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    global_pool: str = "map"
    ignore_head: bool = True
    class_token: bool = False
    num_classes: int = 0
    use_checkpoint: bool = False
    weight_init: str = "skip"
    deterministic: bool = False
    num_recomputing_layers: int = 0

    @property
    def grid(self) -> int:
        """Patches along one side of a tile; pixels beyond the last whole patch are not seen (384 / 14 -> 27)."""
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        """Hidden channels of each block's MLP, rounded down (1152 x 3.7362 -> 4304)."""
        return int(self.width * self.mlp_ratio)

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    def idle_fields(self) -> dict[str, str]:
        """The fields that nothing reads with the config's other values, each with the reason."""
        idle = {"model_name": "a label: every size is read from its own field"}
        if self.ignore_head:
            idle |= dict.fromkeys(("global_pool", "num_classes"), "ignore_head is on: the tower has no head")
        if not self.use_checkpoint:
            idle["num_recomputing_layers"] = "use_checkpoint is off: nothing is computed again"
        return idle

    def check_rules(self) -> None:
        self.require_at_least(1, "image_size", "patch_size", "width", "layers", "heads")
        self.require_at_least(0, "num_classes", "num_recomputing_layers")
        self.require_at_most(MOST_LAYERS, "layers")
        require_divides("heads", self.heads, "width", self.width)
        size, patch = self.image_size, self.patch_size
        require(size >= patch, f"image_size ({size}) must be at least patch_size ({patch})")
        width, ratio = self.width, self.mlp_ratio
        require(self.mlp_width >= 1, f"width ({width}) x mlp_ratio ({ratio}) must be at least 1, got {width * ratio:g}")
        require_one_of("global_pool", self.global_pool, GLOBAL_POOLS)
        require_one_of("weight_init", self.weight_init, WEIGHT_INITS)
        pooled = self.global_pool != "token" or self.class_token
        require(pooled, f'global_pool "token" needs class_token=True, got class_token={self.class_token}')
        again, layers = self.num_recomputing_layers, self.layers
        require(again <= layers, f"num_recomputing_layers ({again}) must not exceed layers ({layers})")


class MlpProjectorConfig(CheckedConfig):
    """The map from vision channels (`input_dim`) to language channels (`n_embed`) (model_type `mlp_projector`)."""

    model_type = "mlp_projector"
    base_config_key = "projector_config"

    projector_type: str = "downsample_mlp_gelu"
    input_dim: int = 1152
    n_embed: int = 2048
    depth: int = 2
    mlp_ratio: int = 1
    downsample_ratio: int = 2
    token_pooling: bool = False
    use_bias: bool = True

    def side_after(self, side: int) -> int:
        """Tokens along a side of what becomes of `side` by `side` patches; a last group that lacks some is padded."""
        if self.token_pooling:
            side = -(-side // 2)
        return -(-side // self.downsample_ratio) if self.projector_type == "downsample_mlp_gelu" else side

    def idle_fields(self) -> dict[str, str]:
        """The fields that nothing reads with the config's other values, each with the reason."""
        kind, idle = self.projector_type, []
        if kind != "downsample_mlp_gelu":
            idle += ["downsample_ratio", "mlp_ratio"]
        if kind in ("identity", "linear"):
            idle += ["depth"]
        if kind == "identity" and not self.token_pooling:
            idle += ["use_bias"]
        return dict.fromkeys(idle, f'projector_type "{kind}" has none')

    def check_rules(self) -> None:
        require_one_of("projector_type", self.projector_type, PROJECTOR_TYPES)
        self.require_at_least(1, "input_dim", "n_embed", "depth", "mlp_ratio", "downsample_ratio")
        self.require_at_most(MOST_LAYERS, "depth")
        require(
            self.projector_type != "downsample_mlp_gelu" or self.depth >= 2,
            f'projector_type "downsample_mlp_gelu" needs depth of at least 2, got {self.depth}',
        )


class DeepseekVLV2Config(CheckedConfig):
    """DeepSeek-VL2 (arXiv 2412.10302): `vision_config`, `projector_config` and `language_config`, dicts or objects.

    What is left out is derived so that the three fit: the projector's `input_dim` and `n_embed` from its neighbours,
    or a neighbour's width from a projector that states it; `candidate_resolutions` from the vision `image_size`.
    `candidate_resolutions` are `(width, height)` in pixels, each side a multiple of the first one's width, which is
    the tile's side. `vision_batch_size` bounds how many tiles the vision tower sees at once.
    """

    model_type = "deepseek_vl_v2"
    sub_configs: ClassVar[dict[str, type[CheckedConfig]]] = {
        "vision_config": VisionEncoderConfig,
        "projector_config": MlpProjectorConfig,
        "language_config": DeepseekV2Config,
    }

    vision_config: VisionEncoderConfig = field(default_factory=VisionEncoderConfig)
    projector_config: MlpProjectorConfig = field(default_factory=MlpProjectorConfig)
    language_config: DeepseekV2Config = field(default_factory=DeepseekV2Config)
    tile_tag: str = "2D"
    global_view_pos: str = "head"
    candidate_resolutions: tuple[tuple[int, int], ...] = ((384, 384),)
    vision_batch_size: int = 32

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        _refuse_other_architectures(values.get("architectures"))
        values = super().normalise(values)
        given = {name: values.get(name) for name in cls.sub_configs}
        stated = given["projector_config"]
        vision = _build("vision_config", VisionEncoderConfig, given, {"width": _stated(stated, "input_dim")})
        language = _build("language_config", DeepseekV2Config, given, {"hidden_size": _stated(stated, "n_embed")})
        fitting = {"input_dim": vision.width, "n_embed": language.hidden_size}
        if isinstance(stated, dict):
            given["projector_config"] = {**fitting, **stated}
        projector = _build("projector_config", MlpProjectorConfig, given, fitting)
        parts = {"vision_config": vision, "projector_config": projector, "language_config": language}
        return {"candidate_resolutions": ((vision.image_size,) * 2,)} | values | parts

    @property
    def tile_size(self) -> int:
        """Side of the square tiles that pictures are cut into, in pixels."""
        return self.candidate_resolutions[0][0]

    def picture_tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of the prompt that a picture takes whose local tiles form `grid`, (columns, rows)."""
        return image_token_count(grid, self.projector_config.side_after(self.vision_config.grid), self.tile_tag)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> DeepseekV2Config:
        """The language model's config, whichever part is asked for."""
        return self.language_config

    def check_rules(self) -> None:
        _refuse_other_architectures(self.architectures)
        for name in self.sub_configs:
            _named(name, getattr(self, name).check)
        require_one_of("tile_tag", self.tile_tag, TILE_TAGS)
        require_one_of("global_view_pos", self.global_view_pos, GLOBAL_VIEW_POSITIONS)
        self.require_at_least(1, "vision_batch_size")
        self._check_resolutions()
        vision, projector, language = self.vision_config, self.projector_config, self.language_config
        require(
            vision.ignore_head or (vision.global_pool == "" and not vision.num_classes),
            f'vision_config.ignore_head (False) needs global_pool "" and num_classes 0, got "{vision.global_pool}" and '
            f"{vision.num_classes}: a head leaves one row of a tile, and the projector reads every patch",
        )
        require(
            vision.ignore_head or not vision.class_token,
            "vision_config.ignore_head (False) needs class_token=False, got True: the projector reads patches alone",
        )
        require(
            projector.input_dim == vision.width,
            f"projector_config.input_dim ({projector.input_dim}) must equal vision_config.width ({vision.width})",
        )
        require(
            projector.n_embed == language.hidden_size,
            f"projector_config.n_embed ({projector.n_embed}) must equal "
            f"language_config.hidden_size ({language.hidden_size})",
        )
        wide, narrow = projector.input_dim, projector.n_embed
        require(
            projector.projector_type != "identity" or wide == narrow,
            f'projector_type "identity" needs input_dim ({wide}) equal to n_embed ({narrow})',
        )

    def _check_resolutions(self) -> None:
        require(
            len(self.candidate_resolutions) > 0,
            "candidate_resolutions must hold at least one (width, height), got none",
        )
        for width, height in self.candidate_resolutions:
            require(
                min(width, height, self.tile_size) > 0 and width % self.tile_size == 0 and height % self.tile_size == 0,
                f"candidate_resolutions ({width}, {height}): each side must be a positive multiple of the tile side "
                f"({self.tile_size}), the width of the first",
            )


def _refuse_other_architectures(architectures: Any) -> None:
    """DeepSeek-OCR writes the same model_type; only `architectures` tells it apart."""
    names = architectures or []
    require(
        not names or any(str(name).startswith("DeepseekVLV2") for name in names),
        f'model_type "deepseek_vl_v2" is read here for architectures ["DeepseekVLV2ForCausalLM"], got {names}',
    )


def _stated(config: Any, name: str) -> Any:
    """What a projector config, a dict or an object, says about a neighbour's width; `None` if nothing."""
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _build(name: str, config_class: type[C], given: dict[str, Any], fitting: dict[str, Any]) -> C:
    """The sub-config `name` as a `config_class` of its own: from what was given, else the default that fits."""
    value = given[name]
    if value is None:
        value = {key: width for key, width in fitting.items() if width is not None}
    if isinstance(value, config_class):
        return copy.deepcopy(value)
    value = value.to_dict() if isinstance(value, PreTrainedConfig) else value
    require(isinstance(value, dict), f"{name} must be a dict or a {config_class.__name__}, got {value!r}")
    return _named(name, lambda: config_class(**value))


def _named(name: str, act: Callable[[], R]) -> R:
    """Run `act`; a `ConfigError` from it says which sub-config it is about."""
    try:
        return act()
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
