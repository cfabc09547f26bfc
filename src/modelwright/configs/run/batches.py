"""What a run reads: sources of rows, how rows become batches, and how many there are in a step."""

from dataclasses import dataclass
from typing import Literal

from modelwright.configs.base import CheckedConfig, require, require_divides
from modelwright.configs.run.part import RunPart

USUAL_LENGTH = 4096
"""Tokens of a row where nobody states them."""


def longest_row(model: CheckedConfig) -> int:
    """The usual length of a row, or how many positions a model has where these are fewer."""
    positions = getattr(model.get_text_config(), "max_position_embeddings", None)
    return min(USUAL_LENGTH, positions or USUAL_LENGTH)


@dataclass(frozen=True)
class SourcePart(RunPart):
    """A file, a glob, a folder or an `hf://` name of rows; a bare text is its path.

    Attributes:
        path: relative to `data.root`, or to the run file.
        format: `auto` finds it by the first row.
        weight: its share of a mixture.
        name: what it is called in what a run says; None: the path.
    """

    SHORT = "path"

    path: str
    format: str = "auto"
    weight: float = 1.0
    name: str | None = None

    def check_rules(self) -> None:
        require(bool(self.path), "path must not be empty")
        require(self.weight > 0, f"weight must be above 0, got {self.weight}")


@dataclass(frozen=True)
class DataPart(RunPart):
    """What is read, and how rows become documents of at most `seq_length` tokens.

    Attributes:
        train, eval: the sources of the run, and of what is held out of it.
        root: the folder that paths and pictures are relative to; None: the file they stand in.
        seq_length: tokens of a packed row, and of the longest document.
        pack: whether documents share rows.
        truncate: whether a longer document is refused, or loses its end.
        labels: which answers are learned; `all` also learns what is asked.
        workers: processes that read ahead; 0 reads in the loop.
        on_error: what a broken row does.
        cache: the folder of prepared tokens.
        window: documents that packing chooses among.
        drop_last: whether what is left of an epoch that fills no step is left out.
        skip: steps whose rows are passed over when a run begins.
        continues: whether a resumed run goes on where its data stopped, or begins with the first row again.
    """

    train: tuple[SourcePart, ...] = ()
    eval: tuple[SourcePart, ...] = ()
    root: str | None = None
    seq_length: int = USUAL_LENGTH
    pack: Literal["documents", "none"] = "documents"
    truncate: Literal["refuse", "end"] = "refuse"
    shuffle: bool = True
    labels: Literal["assistant", "last", "all"] = "assistant"
    workers: int = 2
    on_error: Literal["stop", "skip"] = "stop"
    cache: str | None = None
    window: int = 4096
    drop_last: bool = False
    skip: int = 0
    continues: bool = True

    def check_rules(self) -> None:
        self.require_at_least(2, "seq_length")
        self.require_at_least(1, "window")
        self.require_at_least(0, "workers", "skip")
        for name in ("train", "eval"):
            called = [source.name or source.path for source in getattr(self, name)]
            twice = next((each for each in called if called.count(each) > 1), None)
            require(twice is None, f"{name} names {twice} more than once: give the sources different names")


@dataclass(frozen=True)
class BatchPart(RunPart):
    """Rows of one pass on one rank (`micro`), and of one optimizer step on all of them (`global`)."""

    micro: int = 1
    global_: int = 1

    def check_rules(self) -> None:
        self.require_at_least(1, "micro")
        require(self.global_ >= 1, f"global must be at least 1, got {self.global_}")
        require_divides("micro", self.micro, "global", self.global_)
