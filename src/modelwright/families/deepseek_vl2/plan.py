"""DeepSeek-VL2's sizes from its config: the vision tower and the projector before the DeepSeek-V2 decoder."""

from dataclasses import replace
from itertools import pairwise

from modelwright.configs.tiling import tile_count
from modelwright.families.deepseek_v2.plan import count_deepseek_v2
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config, MlpProjectorConfig, VisionEncoderConfig
from modelwright.planner.computing import Computing
from modelwright.planner.counts import Counts
from modelwright.planner.shapes import FeedForward, GroupedAttention, Layer, Linear
from modelwright.planner.stored import ModuleNames
from modelwright.planner.vision import Rows, Tower, Vision

NAMES = ModuleNames(layer="language.model.layers.{layer}", head="language.lm_head")
"""Those of DeepSeek-V2 behind a prefix."""


def count_deepseek_vl2(config: DeepseekVLV2Config) -> Counts:
    """The decoder with its language-model head, and the tower and projector in front of it."""
    projector, side = _projector(config.projector_config, config.vision_config.grid)
    tile = config.tile_size
    most = max(tile_count((width // tile, height // tile)) for width, height in config.candidate_resolutions)
    vision = Vision(
        tower=_tower(config.vision_config),
        projector=projector,
        marks=(most if config.tile_tag == "1D" else 2) * config.projector_config.n_embed,
        side=side,
        candidates=config.candidate_resolutions,
        tile_size=tile,
        tile_tag=config.tile_tag,
        batch=config.vision_batch_size,
    )
    language = count_deepseek_v2(config.language_config)
    return replace(language, model_type=config.model_type, vision=vision, names=NAMES)


def _tower(config: VisionEncoderConfig) -> Tower:
    width, patches = config.width, config.grid**2
    tokens = patches + int(config.class_token)
    attention = GroupedAttention(width, config.heads, config.heads, config.head_dim, qkv_bias=True, out_bias=True)
    block = Layer(attention, _mlp(config), norms=2 * 2 * width, computing=Computing(norm="layer", causal_mask=False))
    mapped = not config.ignore_head and config.global_pool == "map"
    learned = tokens * width + int(config.class_token) * width + 2 * width  # positions, class token, last norm
    return Tower(
        patch=Linear(3 * config.patch_size**2, width, bias=True),
        patches=patches,
        tokens=tokens,
        blocks=(block,) * config.layers,
        learned=learned + 3 * width * mapped,  # the pooling query and its norm
        head=() if config.ignore_head else _head(config, tokens),
        pooled_width=width * mapped,
    )


def _mlp(config: VisionEncoderConfig) -> FeedForward:
    return FeedForward(config.width, config.mlp_width, gated=False, bias=True)


def _head(config: VisionEncoderConfig, tokens: int) -> tuple[Rows, ...]:
    """What follows the blocks of a tower that pools: the learned query's attention and MLP, then the classifier."""
    width, square = config.width, Linear(config.width, config.width, bias=True)
    pool: tuple[Rows, ...] = ()
    if config.global_pool == "map":
        pool = (Rows(1, square), Rows(tokens, Linear(width, 2 * width, bias=True)), Rows(1, square))
        pool += tuple(Rows(1, linear) for linear in _mlp(config).linears)
    rows = 1 if config.global_pool else tokens
    return (*pool, Rows(rows, Linear(width, config.num_classes, bias=True))) if config.num_classes else pool


def _projector(config: MlpProjectorConfig, side: int) -> tuple[tuple[Rows, ...], int]:
    """The projector's layers for tiles of `side` by `side` patches, and the side of what comes out."""
    layers: list[Rows] = []
    if config.token_pooling:
        pooled = -(-side // 2)
        layers.append(Rows(pooled**2, Linear(4 * config.input_dim, config.input_dim, config.use_bias)))
    after = config.side_after(side)
    widths = pairwise(_projector_widths(config))
    return (*layers, *(Rows(after**2, Linear(narrow, wide, config.use_bias)) for narrow, wide in widths)), after


def _projector_widths(config: MlpProjectorConfig) -> list[int]:
    """The channels before, between and after the projector's layers."""
    if config.projector_type == "identity":
        return [config.input_dim]
    if config.projector_type == "linear":
        return [config.input_dim, config.n_embed]
    if config.projector_type == "mlp_gelu":
        return [config.input_dim] + [config.n_embed] * config.depth
    joined = config.input_dim * config.downsample_ratio**2
    return [joined] + [config.n_embed * config.mlp_ratio] * (config.depth - 1) + [config.n_embed]
