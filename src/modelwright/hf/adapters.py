"""Adapters of other libraries for official layers that are stored here as parts of a stack: refused, by name."""

from typing import Any

from torch import nn

from modelwright.checkpoints.places import places_of
from modelwright.errors import CheckpointError

_OWN = ("weight", "bias")


def refuse_adapters_of_parts(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Raise where a state dict brings adapters, such as LoRA, for layers that a stack holds and no module stands for.

    A pre-hook of torch's ``load_state_dict``: an adapter that peft loads finds no module there, and would be left out.

    Raises:
        CheckpointError: it does.
    """
    inside = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
    own = model.state_dict().keys()
    strange = [name for name in inside if name not in own]
    if not strange:
        return
    places = {name.replace(".base_layer", ""): place for name, place in places_of(model).items()}  # peft's wrappers
    parts = {name.rpartition(".")[0] for name, place in places.items() if place.index}
    for name in strange:
        layer = next((stem for stem in _stems(name) if stem in parts), None)
        if layer is not None and name.removeprefix(f"{layer}.") not in _OWN:
            raise CheckpointError(
                f"an adapter of {layer} cannot be loaded, for the layer is part of a stack here and has no module: "
                f"merge the adapter into the checkpoint first (got {name})"
            )


def _stems(name: str) -> list[str]:
    """What stands before each dot of a name."""
    words = name.split(".")
    return [".".join(words[:end]) for end in range(1, len(words))]
