"""How several ranks share a DeepSeek-V2: its experts as ``ep_size`` says."""

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.layers import MoE
from modelwright.parallel import Mesh, Rule, expert_rule


def slicing_rules(config: DeepseekV2Config, mesh: Mesh) -> dict[type, Rule]:
    """Whole experts are shared out over ``ep_size`` ranks, or over all where it is 1."""
    return {MoE: expert_rule(config.ep_size if config.ep_size > 1 else mesh.size)}
