"""nn.Modules that take sizes and other modules, never a family's config."""

from modelwright.layers.attention import FusedSelfAttention, GroupedQueryAttention
from modelwright.layers.latent_attention import LatentAttention
from modelwright.layers.linear import Linear, column_linear, row_linear
from modelwright.layers.mlp import GatedMLP, PlainMLP
from modelwright.layers.moe import Dispatcher, Experts, LocalDispatcher, MoE, Router, Routing
from modelwright.layers.norm import RMSNorm
from modelwright.layers.quick_gelu import QuickGELU
from modelwright.layers.rope import RotaryEmbedding, Rotation
from modelwright.layers.slots import Slot
from modelwright.layers.stack import StackOutput, run_stack, wanted

__all__ = [
    "Dispatcher",
    "Experts",
    "FusedSelfAttention",
    "GatedMLP",
    "GroupedQueryAttention",
    "LatentAttention",
    "Linear",
    "LocalDispatcher",
    "MoE",
    "PlainMLP",
    "QuickGELU",
    "RMSNorm",
    "RotaryEmbedding",
    "Rotation",
    "Router",
    "Routing",
    "Slot",
    "StackOutput",
    "column_linear",
    "row_linear",
    "run_stack",
    "wanted",
]
