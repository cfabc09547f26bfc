"""`RunConfig`, one training run: its parts and the rules between them; files are read in `reading`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import Any, Literal, Self

from modelwright.configs.base import CheckedConfig, require, require_divides
from modelwright.configs.run.batches import BatchPart, DataPart, longest_row
from modelwright.configs.run.layout import ZERO_BUBBLE, ParallelPart, RecomputePart, SwapPart
from modelwright.configs.run.learning import LossPart, OptimizerPart, PrecisionPart, SchedulePart
from modelwright.configs.run.model import ModelPart, TunePart
from modelwright.configs.run.origin import Origin, paths_of
from modelwright.configs.run.part import RunPart, nested, value_at
from modelwright.configs.run.reading import over, read_run
from modelwright.configs.run.watching import CheckpointPart, EvaluatePart, LimitsPart, LogPart


@dataclass(frozen=True)
class RunConfig(RunPart):
    """A training run, checked as a whole; `of` and `read` build it, and `to_dict` gives back what `of` takes.

    Attributes:
        steps, epochs: how long it runs, exactly one of them.
        clip: the largest global norm of the gradients; None leaves them.
        seed: of the order of data, of dropout, and of drawn weights.
        deterministic: whether torch takes only operations that give the same bits from run to run; `auto` is yes on a
            CPU, where it costs nothing, and no on a GPU, where it costs speed.
        compile: `layers` compiles each layer.
        output: the folder that the run writes to, relative to where it is started.
        recompute: which activations are computed again; `full` is all layers, `selective` all but matrix products.
        origin: where its values come from; it is no key, and two runs with the same values are equal.
    """

    model: ModelPart
    output: str
    tune: TunePart | None = None
    data: DataPart = field(default_factory=DataPart)
    batch: BatchPart = field(default_factory=BatchPart)
    loss: LossPart = field(default_factory=LossPart)
    optimizer: OptimizerPart = field(default_factory=OptimizerPart)
    schedule: SchedulePart = field(default_factory=SchedulePart)
    steps: int | None = None
    epochs: int | None = None
    clip: float | None = 1.0
    seed: int = 0
    deterministic: bool | Literal["auto"] = "auto"
    precision: PrecisionPart = field(default_factory=PrecisionPart)
    parallel: ParallelPart = field(default_factory=ParallelPart)
    recompute: Literal["none", "full", "selective"] | RecomputePart = "none"
    swap: SwapPart | None = None
    compile: Literal[False, "layers"] = False
    checkpoint: CheckpointPart = field(default_factory=CheckpointPart)
    log: LogPart = field(default_factory=LogPart)
    evaluate: EvaluatePart = field(default_factory=EvaluatePart)
    limits: LimitsPart = field(default_factory=LimitsPart)
    origin: Origin = field(default_factory=Origin, compare=False, repr=False, kw_only=True)

    @classmethod
    def read(cls, path: str | PathLike, overrides: Iterable[str] = ()) -> Self:
        """The run of a YAML file under overrides such as `optimizer.lr=1e-4`, whose values are YAML too.

        The file's `base` names another whose values it inherits, relative to itself.

        Raises:
            ConfigError: the file cannot be read, a key is unknown, or a rule does not hold.
        """
        values, origin = read_run(path, overrides, cls.paths())
        return replace(cls.of(values), origin=origin)

    @classmethod
    def of(cls, values: Any, name: str = "") -> Self:
        """The run of a mapping of its keys."""
        run = super().of(values, name)
        return run if run is values else replace(run, origin=Origin(frozenset(paths_of(values))))

    def check_rules(self) -> None:
        given = [f"{name} ({getattr(self, name)})" for name in ("steps", "epochs") if getattr(self, name) is not None]
        require(
            len(given) == 1,
            f"exactly one of steps and epochs must be given, got {' and '.join(given) or 'neither'}",
        )
        self.require_at_least(1, "steps", "epochs")
        self.require_at_least(0, "seed")
        require(self.clip is None or self.clip > 0, f"clip must be above 0 or null, got {self.clip}")
        self._check_layout()

    def _check_layout(self) -> None:
        parallel, frozen = self.parallel, bool(self.tune and (self.tune.freeze or self.tune.train or self.tune.lora))
        how, context, model = parallel.schedule, parallel.context, parallel.model
        if how in ZERO_BUBBLE:
            said = f'schedule "{how}" splits a backward pass by inputs and weights, so it needs'
            require(self.compile is False, f"{said} compile false, got {self.compile}")
            require(not frozen, f"{said} every layer to train, and tune freezes some")
        if isinstance(context, int) and context > 1:
            ways = 2 * context * (model if parallel.sequence and isinstance(model, int) else 1)
            called = "2 x context x model" if parallel.sequence and model != 1 else "2 x context"
            require_divides(called, ways, "data.seq_length", self.data.seq_length)

    def check_ranks(self, ranks: int = 1) -> int:
        """Check that the run fits so many ranks, and say how many of them read rows of their own.

        Raises:
            ConfigError: the degrees do not make so many ranks, the rows of a step do not divide among them, or the run
                asks for what one rank has not.
        """
        if self.origin.mindformers:
            self._check_mindformers_ranks(ranks)
        data = self.parallel.data_ranks(ranks)
        passes = (self.parallel.micro_batches or 1) if self.parallel.pipeline not in (1, "auto") else 1
        rows = self.batch.micro * data * passes
        called = "batch.micro x data ranks" + (" x parallel.micro_batches" if passes > 1 else "")
        require_divides(called, rows, "batch.global", self.batch.global_)
        restarts = self.limits.restarts
        require(
            ranks > 1 or not restarts,
            f"limits.restarts ({restarts}) needs several ranks, which their launcher begins again, got {ranks}",
        )
        return data

    def fields_without_effect(self, ranks: int = 1) -> dict[str, str]:
        """What of the run changes nothing on so many ranks, beside its other values or at all, each with the reason.

        It lists what differs from its default, and what its file holds that means nothing here.
        """
        usual, found = ParallelPart(), dict(self.origin.without_effect)
        for key, part in (("optimizer", self.optimizer), ("schedule", self.schedule)):
            found |= {f"{key}.{name}": reason for name, reason in part.without_effect().items()}
        compute = self.precision.compute or self.model.dtype
        if self.precision.scale is not None and compute != "float16":
            found["precision.scale"] = f"it keeps float16's gradients, and the run computes in {compute}"
        if not self.data.eval:
            unread = self.evaluate.said() - {"only"}
            found |= {f"evaluate.{name}": "data.eval names no rows to measure" for name in sorted(unread)}
        if self.limits.spike_of != LimitsPart().spike_of and self.limits.spike is None:
            found["limits.spike_of"] = "limits.spike is not given"
        for name in (each.name for each in fields(ParallelPart) if each.name not in self.parallel.degrees):
            if ranks == 1 and getattr(self.parallel, name) != getattr(usual, name):
                found[f"parallel.{name}"] = "it says how several ranks work, and one rank trains"
        if ranks == 1 and self.precision.reduce != PrecisionPart().reduce:
            found["precision.reduce"] = "it is the type of sums over ranks, and one rank trains"
        return found

    def _check_mindformers_ranks(self, ranks: int) -> None:
        """The same in MindFormers' names, as its file has them."""
        part = self.parallel
        shared = [degree for degree in (part.data, part.shard) if degree != "auto"]
        others = [1 if each == "auto" else each for each in (part.model, part.context, part.pipeline)]
        product = math.prod(map(int, [*shared, *others]))
        numbers = "·".join(map(str, [math.prod(map(int, shared)), *others]))
        require(
            len(shared) < 2 or product == ranks,
            "data_parallel × model_parallel × context_parallel × pipeline_stage "
            f"({numbers} = {product}) must equal the ranks ({ranks})",
        )

    def filled_by(self, model: CheckedConfig) -> Self:
        """The run with what the model's own config states of it, where no file and no override of the run does.

        A length of rows that nobody states is the usual one, or the positions of a model that has fewer.

        Raises:
            ConfigError: a key is given in both with different values.
        """
        values, given, stated = self.to_dict(), self.origin.stated, model.run_values()
        if given is None or self.origin.mindformers:  # whose file says both, and has been read as a whole
            return self
        if "data.seq_length" not in given | stated.keys():
            stated["data.seq_length"] = longest_row(model)
        for path, value in stated.items():
            own = value_at(values, path)
            inside = any(f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}.") for key in given)
            if inside and own != value:  # which may leave out what is as usual
                value = value_at(type(self).of(over(values, nested({path: value}))).to_dict(), path)
            require(
                not inside or own == value,
                f"{path} is {own} in the run and {value} in the config of the model: give it once, or the same in both",
            )
            if not inside:
                values = over(values, nested({path: value}))
        return replace(type(self).of(values), origin=self.origin)

    def accumulation(self, data_ranks: int = 1) -> int:
        """Passes of each data rank in one step.

        Raises:
            ConfigError: the step's rows do not divide among them.
        """
        rows = self.batch.micro * data_ranks
        require_divides("batch.micro x data ranks", rows, "batch.global", self.batch.global_)
        return self.batch.global_ // rows
