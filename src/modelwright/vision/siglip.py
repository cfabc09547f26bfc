"""The SigLIP vision transformer (arXiv:2303.15343) as DeepSeek-VL2 uses it: fixed picture size, every patch returned.

Parameter names are those of the official checkpoints (``patch_embed.proj``, ``blocks.N.attn.qkv``, ...).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modelwright.attention import AttentionBackend, DenseAttention
from modelwright.configs import VisionEncoderConfig
from modelwright.layers import FusedSelfAttention, PlainMLP

NORM_EPS = 1e-6
gelu_tanh = partial(F.gelu, approximate="tanh")


class PatchEmbed(nn.Module):
    """Non-overlapping patches, no padding: pixels that do not fill a patch at the right and bottom are left out."""

    def __init__(self, patch_size: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, pictures: Tensor) -> Tensor:
        """``[tiles, 3, H, W]`` to ``[tiles, patches, width]``, row by row."""
        return self.proj(pictures).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block over all patches: ``[tiles, patches, width]`` to the same."""

    def __init__(self, layer: int, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = FusedSelfAttention(layer, width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = PlainMLP(width, hidden, gelu_tanh, bias=True)

    def forward(self, x: Tensor, attention: AttentionBackend) -> Tensor:
        x = x + self.attn(self.norm1(x), attention)
        return x + self.mlp(self.norm2(x))


class AttentionPool(nn.Module):
    """One learned query over all patches (the SigLIP "map" head): ``[tiles, patches, width]`` to ``[tiles, width]``."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = PlainMLP(width, hidden, gelu_tanh, bias=True)

    def forward(self, x: Tensor, attention: AttentionBackend) -> Tensor:
        tiles, _, width = x.shape
        q = self.q(self.latent.expand(tiles, -1, -1)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = attention.attend(0, q, k, v, scale=(width // self.heads) ** -0.5)
        pooled = self.proj(pooled.transpose(1, 2).flatten(2))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class VisionTower(nn.Module):
    """``[tiles, 3, image_size, image_size]`` to ``[tiles, patches, width]`` after the final norm.

    With ``ignore_head=False`` the pooling head (``global_pool``) and, for ``num_classes > 0``, a classifier are built too
    and the result is ``[tiles, width]`` or ``[tiles, num_classes]``.
    """

    def __init__(self, config: VisionEncoderConfig):
        super().__init__()
        self.config = config
        width, hidden = config.width, config.mlp_width
        self.patch_embed = PatchEmbed(config.patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + int(config.class_token), width))
        self.blocks = nn.ModuleList(Block(i, width, config.heads, hidden) for i in range(config.layers))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        if not config.ignore_head:
            self.attn_pool = AttentionPool(width, config.heads, hidden) if config.global_pool == "map" else None
            self.head = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()

    def forward(self, pictures: Tensor) -> Tensor:
        attention = DenseAttention(causal=False, fused=not self.config.deterministic)
        x = self.patch_embed(pictures)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        x = x + self.pos_embed
        for i, block in enumerate(self.blocks):
            x = checkpoint(block, x, attention, use_reentrant=False) if self._recomputes(i) else block(x, attention)
        x = self.norm(x)
        if not self.config.ignore_head:
            return self.head(self._pool(x, attention))
        return x if self.cls_token is None else x[:, 1:]

    def _recomputes(self, layer: int) -> bool:
        """Activation checkpointing covers the first ``num_recomputing_layers`` blocks; 0 stands for all of them."""
        limit = self.config.num_recomputing_layers or self.config.layers
        return self.config.use_checkpoint and self.training and layer < limit

    def _pool(self, x: Tensor, attention: AttentionBackend) -> Tensor:
        if self.attn_pool is not None:
            return self.attn_pool(x, attention)
        return x[:, 0] if self.config.global_pool == "token" else x[:, int(self.config.class_token) :].mean(dim=1)
