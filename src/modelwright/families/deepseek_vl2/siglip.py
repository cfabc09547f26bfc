"""The SigLIP vision transformer (arXiv:2303.15343) as DeepSeek-VL2 uses it: fixed picture size, every patch returned.

Parameter names are those of the official checkpoints (``patch_embed.proj``, ``blocks.N.attn.qkv``, ...). How new
weights are drawn stands in ``initialise.py``.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modelwright.attention import AttentionBackend, DenseAttention
from modelwright.errors import RequestError
from modelwright.families.deepseek_vl2.config import VisionEncoderConfig
from modelwright.layers import FusedSelfAttention, Linear, PlainMLP
from modelwright.layers.checkpointed import CheckpointedLayer
from modelwright.ops.attention import attention, reference_attention
from modelwright.ops.products import patch_convolution

gelu_tanh = partial(F.gelu, approximate="tanh")
SiglipNorm = partial(nn.LayerNorm, eps=1e-6)


class PatchProjection(nn.Conv2d):
    """torch's convolution of patches, in fp32 where this processor has no products of its type."""

    def forward(self, input: Tensor) -> Tensor:
        return patch_convolution(input, self.weight, self.bias)


class PatchEmbed(nn.Module):
    """Non-overlapping patches, no padding: pixels that do not fill a patch at the right and bottom are left out."""

    def __init__(self, patch_size: int, width: int):
        super().__init__()
        self.proj = PatchProjection(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, pictures: Tensor) -> Tensor:
        """``[tiles, 3, H, W]`` to ``[tiles, patches, width]``, row by row."""
        return self.proj(pictures).flatten(2).transpose(1, 2)


class Block(CheckpointedLayer):
    """Pre-norm transformer block over all patches: ``[tiles, patches, width]`` to the same."""

    def __init__(self, layer: int, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = SiglipNorm(width)
        self.attn = FusedSelfAttention(layer, width, heads)
        self.norm2 = SiglipNorm(width)
        self.mlp = PlainMLP(width, hidden, gelu_tanh, bias=True)

    def forward(self, x: Tensor, attention: AttentionBackend) -> Tensor:
        x = x + self.attn(self.norm1(x), attention)
        return x + self.mlp(self.norm2(x))


class AttentionPool(nn.Module):
    """One learned query over all patches (the SigLIP "map" head): ``[tiles, patches, width]`` to ``[tiles, width]``."""

    def __init__(self, width: int, heads: int, hidden: int, fused: bool = True):
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.product = attention if fused else reference_attention
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.norm = SiglipNorm(width)
        self.mlp = PlainMLP(width, hidden, gelu_tanh, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(self.latent.expand(x.shape[0], -1, -1)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = self.product(q, k, v, None, self.scale)  # [tiles, heads, 1, head_dim]
        pooled = self.proj(pooled.transpose(1, 2).flatten(2))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class VisionTower(nn.Module):
    """``[tiles, 3, image_size, image_size]`` to ``[tiles, patches, width]``: the normed patches, no class token.

    With ``ignore_head=False`` the rows are pooled as ``global_pool`` says: ``map`` (by a learned query), ``token`` (the
    class token), ``avg`` (the mean patch, normed after and not before: ``fc_norm``) or not at all (``""``); then, for
    ``num_classes > 0``, classified.

    ``deterministic`` writes the attention product out instead of calling torch's kernel. With ``use_checkpoint`` the
    first ``num_recomputing_layers`` blocks (0: all of them) keep no activations in training, unless whoever trains has
    them recomputed already, as it has decoder layers.

    Raises:
        RequestError: the pictures are not ``3 x image_size x image_size``.
    """

    def __init__(self, config: VisionEncoderConfig):
        super().__init__()
        self.config = config
        width, hidden = config.width, config.mlp_width
        self.patch_embed = PatchEmbed(config.patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + int(config.class_token), width))
        self.blocks = nn.ModuleList(Block(i, width, config.heads, hidden) for i in range(config.layers))
        norms_after_pooling = config.global_pool == "avg" and not config.ignore_head
        self.norm = nn.Identity() if norms_after_pooling else SiglipNorm(width)
        if not config.ignore_head:
            mapped, fused = config.global_pool == "map", not config.deterministic
            self.attn_pool = AttentionPool(width, config.heads, hidden, fused) if mapped else None
            self.fc_norm = SiglipNorm(width) if norms_after_pooling else nn.Identity()
            self.head = Linear(width, config.num_classes) if config.num_classes else nn.Identity()

    def forward(self, pictures: Tensor) -> Tensor:
        self._check(pictures)
        x = self.patch_embed(pictures)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + self.pos_embed
        attention = DenseAttention(causal=False, fused=not self.config.deterministic)
        for layer, block in enumerate(self.blocks):
            recomputed = self._recomputes(layer) and not block.gradient_checkpointing
            x = checkpoint(block, x, attention, use_reentrant=False) if recomputed else block(x, attention)
        x = self.norm(x)
        if self.config.ignore_head:
            return self._patches(x)
        return self.head(self.fc_norm(self._pool(x)))

    def _check(self, pictures: Tensor) -> None:
        side = self.config.image_size
        if pictures.shape[1:] != (3, side, side):
            raise RequestError(f"pictures must be [tiles, 3, {side}, {side}], got {list(pictures.shape)}")

    def _patches(self, x: Tensor) -> Tensor:
        return x if self.cls_token is None else x[:, 1:]

    def _recomputes(self, layer: int) -> bool:
        limit = self.config.num_recomputing_layers or self.config.layers
        return self.config.use_checkpoint and self.training and layer < limit

    def _pool(self, x: Tensor) -> Tensor:
        if self.attn_pool is not None:
            return self.attn_pool(x)
        if self.config.global_pool == "token":
            return x[:, 0]
        return self._patches(x).mean(dim=1) if self.config.global_pool == "avg" else x
