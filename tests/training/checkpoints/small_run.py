"""A run of a few numbers with all that makes a curve: weights, moments, dropout, an order of data; and its deaths."""

import builtins
import io
import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelwright.training.checkpoints import Checkpoints, Stopping
from tests.training.checkpoints.states import Part

STEPS, EVERY = 18, 3
CURVE = "curve.jsonl"


def train(output: Path, async_: bool, pause: float = 0.0, die_at: int | None = None) -> None:
    """Train from the newest checkpoint to the end, and note each step's loss to the last bit.

    Args:
        pause: seconds that a step takes longer.
        die_at: the number of the operation on files, of those of checkpoints, at which the process kills itself.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    order = torch.Generator().manual_seed(2)
    for parameter in model.parameters():  # the moments are there before any step
        parameter.grad = torch.zeros_like(parameter)
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    optimizer.param_groups[0]["lr"] = rates[0]
    for state in optimizer.state.values():
        state["step"].zero_()

    def tensors() -> dict[str, torch.Tensor]:
        found = {f"model.{name}": parameter.data for name, parameter in model.named_parameters()}
        for number, state in enumerate(optimizer.state.values()):
            found |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
        return found

    step = 0
    with Checkpoints(output / "checkpoints", Part(keep=2, async_=async_), print) as checkpoints, Stopping() as stopping:
        saved = checkpoints.newest()
        if saved is not None:
            facts = checkpoints.load(saved, tensors())
            step = facts["step"]
            order.set_state(_tensor(facts["order"]))
            torch.set_rng_state(_tensor(facts["random"]))
        if die_at is not None:
            _die_at(die_at, output / "checkpoints")
        while step < STEPS:
            rows = data[torch.randint(64, (4,), generator=order)]
            optimizer.zero_grad()
            loss = (model(rows) - rows).square().mean()
            loss.backward()
            optimizer.step()
            step += 1
            with (output / CURVE).open("a") as file:
                file.write(json.dumps({"step": step, "loss": loss.item().hex()}) + "\n")
            time.sleep(pause)
            asked = stopping.after_step()
            if step % EVERY == 0 or asked.save:
                facts = {"order": _text(order.get_state()), "random": _text(torch.get_rng_state())}
                checkpoints.save(step, tensors(), facts, {"steps": STEPS})
                stopping.saved()
            if asked.stop:
                checkpoints.wait()
                raise SystemExit(3)
        checkpoints.wait()


def _text(state: torch.Tensor) -> str:
    return bytes(state.tolist()).hex()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def curve(output: Path) -> dict[int, set[str]]:
    """The losses of each step, of which a run that was killed notes some twice; a line that was cut off is none."""
    found: dict[int, set[str]] = {}
    for line in (output / CURVE).read_text().split("\n")[:-1]:
        values = json.loads(line)
        found.setdefault(values["step"], set()).add(values["loss"])
    return found


def begun(output: Path, **how: Any) -> Any:
    """A process that trains; those after the first find torch imported."""
    output.mkdir(exist_ok=True)
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed.checkpoint", "yaml"])
    process = context.Process(target=train, args=(output,), kwargs=how)
    process.start()
    return process


def _die_at(number: int, folder: Path) -> None:
    """Kill this process at an operation on a checkpoint's files: none of it has been done then."""
    left = number

    def count(first: Any) -> None:
        nonlocal left
        if isinstance(first, int) or os.fspath(first).startswith(str(folder)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(first: Any, *args: Any, **kwargs: Any) -> Any:
            count(first)
            return function(first, *args, **kwargs)

        return counted

    for name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir"):
        setattr(os, name, counting(getattr(os, name)))
    opened = io.open

    def counted(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wxa+"):
            count(file)
        return opened(file, mode, *args, **kwargs)

    io.open = builtins.open = counted
