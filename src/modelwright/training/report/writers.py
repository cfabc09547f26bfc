"""Small writers for programs that show curves: TensorBoard, Weights & Biases, trackio; each an optional package."""

import os
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from modelwright.errors import ConfigError
from modelwright.training.report.protocols import RunFacts, Writer

INSTALL = {
    "tensorboard": 'pip install "modelwright[track]"',
    "wandb": 'pip install "modelwright[track]"',
    "trackio": "pip install trackio",
}
"""Fields of ``log``, each named as its package, and how that is installed. No extra can hold trackio, which asks for an
older Pillow than pictures need."""


def check_writers(log: Any) -> None:
    """Raise a ConfigError where a package that ``log`` asks for is not installed."""
    for name, value in _asked(log).items():
        if find_spec(name) is None:
            raise ConfigError(
                f"log.{name} ({value}) needs the package {name}, which is not installed: {INSTALL[name]}",
                field=f"log.{name}",
            )


def open_writers(log: Any, folder: Path, facts: RunFacts, note: Callable[[str], None]) -> "Writers":
    """Those that ``log`` asks for; one that cannot be opened is left out with a sentence.

    Raises:
        ConfigError: its package is not installed.
    """
    check_writers(log)
    makers: dict[str, Callable[[Any], Writer]] = {
        "tensorboard": lambda _: TensorBoardWriter(folder / "tensorboard", facts.done),
        "wandb": lambda project: WandbWriter("wandb", str(project), folder, facts),
        "trackio": lambda project: TrackioWriter("trackio", str(project), folder, facts),
    }
    writers = Writers({}, note)
    for name, value in _asked(log).items():
        writers.attempt(name, lambda make=makers[name], value=value, name=name: writers.add(name, make(value)))
    return writers


def _asked(log: Any) -> dict[str, Any]:
    return {name: value for name in INSTALL if (value := getattr(log, name, None))}


@dataclass
class Writers:
    """Several as one; one that raises is dropped with one sentence, and the run goes on."""

    writers: dict[str, Writer]
    note: Callable[[str], None]

    def add(self, name: str, writer: Writer) -> None:
        """One more."""
        self.writers[name] = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """To each that is left."""
        for name, writer in list(self.writers.items()):
            self.attempt(name, lambda writer=writer: writer.log(step, values))

    def close(self) -> None:
        """Each that is left."""
        for name, writer in list(self.writers.items()):
            self.attempt(name, writer.close)

    def attempt(self, name: str, act: Callable[[], None]) -> None:
        """Do something of a writer; whatever it raises, but what a user's Ctrl-C is, drops it."""
        try:
            act()
        except (Exception, SystemExit) as error:
            self.writers.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.note(f"{name} is left out from now on, since it failed: {reason:.300}")


class TensorBoardWriter:
    """Event files that ``tensorboard --logdir`` shows; steps after those that were done before are taken back."""

    def __init__(self, folder: Path, done: int = 0):
        summary: Any = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = summary(str(folder), purge_step=done + 1 if done else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """Weights & Biases. Nothing leaves the machine unless ``WANDB_MODE`` says so; ``wandb sync`` sends it later."""

    def __init__(self, name: str, project: str, folder: Path, facts: RunFacts):
        wandb: Any = import_module(name)
        self._run = wandb.init(
            project=project,
            name=folder.name,
            dir=str(folder),
            config=dict(facts.config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class TrackioWriter:
    """trackio, which keeps its curves on this machine."""

    def __init__(self, name: str, project: str, folder: Path, facts: RunFacts):
        trackio: Any = import_module(name)
        with redirect_stdout(StringIO()):  # it tells how it is looked at, line by line
            self._run = trackio.init(
                project=project,
                name=folder.name,
                config=dict(facts.config),
                resume="allow" if facts.done else "never",
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(StringIO()):
            self._run.finish()
