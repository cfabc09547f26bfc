"""All that a run is at the end of a step, as named tensors and JSON: whoever takes both back goes on bit for bit.

Random numbers need no state: they are drawn by seed, step and micro-batch.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from modelwright.errors import CheckpointError
from modelwright.layers.balance import steered_routers
from modelwright.layers.moe import Router
from modelwright.training.learner import Learner

MODEL, OPTIMIZER = "model.", "optimizer."
"""What names of the model's tensors, and of its optimizer's, begin with."""


def tensors(learner: Learner) -> dict[str, Tensor]:
    """The live tensors: the weights that are stepped by the whole model's names, what steers routers, the moments.

    Filled in place, they are taken over by :func:`taken_over`.
    """
    model = learner.model
    learner.optimizers.begin()
    found = {f"{MODEL}{name}": tensor for name, tensor in learner.weights.state(model).items()}
    steered = set(steered_routers(model))
    for name, module in model.named_modules():
        if isinstance(module, Router) and module in steered:
            found[f"{MODEL}{name}.e_score_correction_bias"] = module.e_score_correction_bias
    return found | {f"{OPTIMIZER}{name}": tensor for name, tensor in learner.optimizers.tensors().items()}


def facts(learner: Learner) -> dict[str, Any]:
    """The rest, as JSON."""
    return {
        "optimizer": learner.config.optimizer.name,
        "seed": learner.config.seed,
        "norms": list(learner.norms),
        "scale": {"value": learner.scale.value, "good": learner.scale.good},
    }


def taken_over(learner: Learner, facts: Mapping[str, Any]) -> None:
    """Go on from tensors that were filled, and from the facts beside them.

    Raises:
        CheckpointError: they are of a run with another optimizer or seed, which would not go on but begin another.
    """
    for name, own in (("optimizer", learner.config.optimizer.name), ("seed", learner.config.seed)):
        if facts[name] != own:
            raise CheckpointError(f"the checkpoint is of a run with {name} {facts[name]!r}, and this one has {own!r}")
    learner.weights.refresh()
    learner.norms = [float(norm) for norm in facts["norms"]]
    learner.scale.value, learner.scale.good = float(facts["scale"]["value"]), int(facts["scale"]["good"])
