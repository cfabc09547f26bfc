"""Random numbers by name: whoever draws says what for, and what others draw changes nothing."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def seed_of(*names: object) -> int:
    """A seed for what the names say, from the first of them, the run's own, on."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def drawn_for(*names: object) -> Iterator[None]:
    """What is drawn inside depends on the names alone; the generators outside go on as if nothing had happened."""
    device = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=device):
        torch.manual_seed(seed_of(*names))
        yield


def draw_first_weights(model: nn.Module, seed: int) -> None:
    """Draw every weight of ``model`` anew, each module's by its name: equal, whatever part of the model is built.

    As the model's own constructor, children before those that hold them, which may know better.
    """
    modules = dict(model.named_modules())
    for name, module in reversed(list(modules.items())):
        with drawn_for(seed, name):
            _model_of(modules, name)._init_weights(module)
    getattr(model, "tie_weights", lambda: None)()


def _model_of(modules: Mapping[str, nn.Module], name: str) -> Any:
    """The innermost model that a module is or is in: a model of several draws each by its own config."""
    while not hasattr(modules[name], "_init_weights"):
        name = name.rpartition(".")[0]
    return modules[name]
