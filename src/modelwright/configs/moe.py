"""The `moe_config` of MindFormers, checked: how a Llama routes to experts; it holds no router."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from modelwright.configs.base import require, require_divides, require_one_of
from modelwright.configs.file_part import FilePart
from modelwright.errors import ConfigError

ROUTING_POLICIES = ("TopkRouterV1", "TopkRouterV2")
TOPK_METHODS = ("greedy", "group_limited_greedy", "noaux_tc")
AUX_LOSS_TYPES = ("expert", "device", "comm")
ROUTER_TYPES = ("float16", "bfloat16", "float32")

TELEMETRY = "it is about what MindFormers logs"
HARDWARE_HINTS = (
    "cold_token_percent",
    "comp_comm_parallel",
    "comp_comm_parallel_degree",
    "dispatch_global_max_bs",
    "enable_cold_hot_expert",
    "enable_deredundency",
    "enable_gmm_safe_tokens",
    "ep_extend_tp",
    "group_wise_a2a",
    "hot_expert_num",
    "moe_module_name",
    "moe_shared_expert_overlap",
    "npu_nums_per_device",
    "update_step",
    "use_allgather_dispatcher",
    "use_fused_ops_permute",
    "use_fused_ops_topkrouter",
)
NOT_READ_IN_MINDFORMERS = ("cur_layer", "first_k_dense_replace", "moe_intermediate_size")


@dataclass(frozen=True)
class MoEConfig(FilePart):
    """How many experts each token may go to and which it takes; with `expert_num` 1 the layers are dense.

    Names and defaults are MindFormers'. Each expert is as wide as `intermediate_size`. `capacity_factor` bounds the
    tokens of one expert (0 or less: as many as come), `enable_sdrop` chooses whether the overflow is dropped in token
    order or by rank of choice, and `use_gmm` drops none. The losses of `aux_loss_types` are weighed by
    `aux_loss_factors`, and `z_loss_factor` weighs the squared log-sum of the router's scores.
    """

    IDLE: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(("callback_moe_droprate", "max_router_load", "save_token_distribution"), TELEMETRY)
        | dict.fromkeys(HARDWARE_HINTS, "a hint to one vendor's hardware; the numbers are the same without it")
        | dict.fromkeys(NOT_READ_IN_MINDFORMERS, "MindFormers' Llama does not read it either")
        | {"routing_policy": "it names generations of MindFormers' code, which route alike"}
    )

    expert_num: int = 1
    num_experts_chosen: int = 1
    routing_policy: str = "TopkRouterV1"
    capacity_factor: float = 1.1
    enable_sdrop: bool = False
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    use_gating_sigmoid: bool = False
    topk_method: str = "greedy"
    n_group: int | None = None
    topk_group: int | None = None
    balance_via_topk_bias: bool = False
    topk_bias_update_rate: float = 0.0
    aux_loss_factor: float = 0.05
    aux_loss_types: list[str] | None = None
    aux_loss_factors: list[float] | None = None
    z_loss_factor: float = 0.0
    router_dense_type: str = "float32"
    shared_expert_num: int = 0
    use_shared_expert_gating: bool = False
    expert_model_parallel: int | None = None
    expert_group_size: int | None = None
    use_gmm: bool = False
    # Without effect on torch, kept for the way back.
    callback_moe_droprate: bool = False
    cold_token_percent: float = 1.0
    comp_comm_parallel: bool = False
    comp_comm_parallel_degree: int = 2
    cur_layer: int = 0
    dispatch_global_max_bs: int = 0
    enable_cold_hot_expert: bool = False
    enable_deredundency: bool = False
    enable_gmm_safe_tokens: bool = False
    ep_extend_tp: bool = True
    first_k_dense_replace: bool | int = True
    group_wise_a2a: bool = False
    hot_expert_num: int = 0
    max_router_load: int = 131072
    moe_intermediate_size: int = 1407
    moe_module_name: str = ""
    moe_shared_expert_overlap: bool = False
    npu_nums_per_device: int = 1
    save_token_distribution: bool = False
    update_step: int = 10000
    use_allgather_dispatcher: bool = False
    use_fused_ops_permute: bool = False
    use_fused_ops_topkrouter: bool = False

    def idle(self) -> dict[str, str]:
        """The fields that nothing reads: those of `IDLE`, and those that these settings switch off."""
        if self.expert_num == 1:
            return dict.fromkeys((name for name in self.names() if name != "expert_num"), "expert_num is 1: no experts")
        return super().idle() | dict(self._switched_off())

    def _switched_off(self) -> Iterator[tuple[str, str]]:
        if self.use_gmm or self.capacity_factor <= 0:
            yield "enable_sdrop", "no token is dropped with use_gmm, or without a capacity_factor above 0"
        if self.use_gmm:
            yield "capacity_factor", "use_gmm drops no tokens"
        if self.topk_method == "greedy":
            reason = 'topk_method "greedy" has no groups'
            yield from dict.fromkeys(("n_group", "topk_group"), reason).items()
        if not self.balance_via_topk_bias:
            yield "topk_bias_update_rate", "balance_via_topk_bias is off: there is no bias to update"
        if self.aux_loss_types:
            yield "aux_loss_factor", "aux_loss_factors weigh the losses of aux_loss_types"
        if "device" not in (self.aux_loss_types or ()):
            yield "expert_group_size", 'only the loss of aux_loss_types "device" has groups of experts'
        if not self.shared_expert_num:
            yield "use_shared_expert_gating", "shared_expert_num is 0: there is nothing to gate"

    def check_rules(self) -> None:
        self.require_at_least(1, "expert_num", "num_experts_chosen", "n_group", "topk_group", "expert_model_parallel")
        self.require_at_least(1, "expert_group_size")
        self.require_at_least(0, "shared_expert_num", "topk_bias_update_rate", "z_loss_factor")
        require_one_of("routing_policy", self.routing_policy, ROUTING_POLICIES)
        require_one_of("topk_method", self.topk_method, TOPK_METHODS)
        require_one_of("router_dense_type", self.router_dense_type, ROUTER_TYPES)
        experts, chosen, factor = self.expert_num, self.num_experts_chosen, self.routed_scaling_factor
        require(chosen <= experts, f"num_experts_chosen ({chosen}) must not exceed expert_num ({experts})")
        require(factor > 0, f"routed_scaling_factor must be above 0, got {factor}")
        require(0 < self.aux_loss_factor < 1, f"aux_loss_factor must be between 0 and 1, got {self.aux_loss_factor}")
        if self.topk_method != "greedy":
            self._check_groups()
        self._check_losses()

    def _check_groups(self) -> None:
        groups, kept, experts, chosen = self.n_group, self.topk_group, self.expert_num, self.num_experts_chosen
        if groups is None or kept is None:
            raise ConfigError(
                f'topk_method "{self.topk_method}" needs n_group and topk_group, got n_group={groups}, '
                f"topk_group={kept}"
            )
        require_divides("n_group", groups, "expert_num", experts)
        require(kept <= groups, f"topk_group ({kept}) must not exceed n_group ({groups})")
        size = experts // groups
        require(
            chosen <= kept * size,
            f"num_experts_chosen ({chosen}) must fit the chosen groups: "
            f"topk_group ({kept}) x {size} experts = {kept * size}",
        )
        require(
            self.topk_method != "noaux_tc" or size >= 2,
            f'topk_method "noaux_tc" ranks groups by their two best experts: expert_num ({experts}) / n_group '
            f"({groups}) must be at least 2",
        )

    def _check_losses(self) -> None:
        kinds, factors = self.aux_loss_types, self.aux_loss_factors
        for kind in kinds or []:
            require_one_of("aux_loss_types", kind, AUX_LOSS_TYPES)
        require(
            len(kinds or []) == len(factors or []),
            f"aux_loss_types ({kinds}) and aux_loss_factors ({factors}) must be equally many",
        )
