"""What the user should know of how operations are computed: that torch stands in for kernels, and why."""

import torch

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends import triton as gpu_kernels
from modelwright.ops.backends.switch import switched_off


def notices(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """A sentence for each kind of kernel that is missing or wrong on the device of a model; usually there is none.

    Kernels that were switched off are not missed. CPU kernels are compiled now if they have not been, and those of a
    GPU are run on small tensors.

    Raises:
        SwitchError: the switch is neither on nor off.
    """
    if switched_off():
        return ()
    if device.type == "cpu":
        kind, reasons = "compiled", [kernels.reason()]
    elif gpu_kernels.reason():
        kind, reasons = "GPU", [gpu_kernels.reason()]
    else:
        kind, reasons = "GPU", [failure(device, dtype) for failure in gpu_kernels.FAILURES]
    return tuple(f"torch computes instead of the {kind} kernels, more slowly: {reason}" for reason in reasons if reason)
