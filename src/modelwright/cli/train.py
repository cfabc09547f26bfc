"""``modelwright train``: reads a run, and hands it to the trainer with a report that speaks to the terminal."""

import logging
from dataclasses import dataclass
from pathlib import Path

from modelwright.cli.console import say
from modelwright.cli.hub_config import fetch_config
from modelwright.cli.plan import find_config
from modelwright.cli.quick_checks import is_on_hub
from modelwright.cli.train_plan import show_run, without_effect
from modelwright.configs import CheckedConfig
from modelwright.configs.run import RunConfig
from modelwright.errors import ConfigError
from modelwright.families.read import config_of, read_config


@dataclass(frozen=True)
class TrainOptions:
    """The options of ``modelwright train``, named as there."""

    run: Path
    overrides: tuple[str, ...] = ()
    dry_run: bool = False
    ranks: int = 1
    resume: str | None = None


def run_train(options: TrainOptions) -> int:
    """Train, or print what training would take; the exit code of how it ended.

    Raises:
        ConfigError: the run is refused, before anything is written.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    run, model = read_checked(options)
    if options.dry_run:
        show_run(run, model, options.run, folder_of(run, options.run), options.ranks)
        return 0
    _say_without_effect(run, model)
    return _train(run, folder_of(run, options.run))


def read_checked(options: TrainOptions) -> tuple[RunConfig, CheckedConfig]:
    """The run, with what its model's config states of it, and that config; all rules hold."""
    overrides = list(options.overrides)
    if options.resume is not None:
        overrides.append(f"checkpoint.resume={options.resume}")
    run = RunConfig.read(options.run, overrides)
    model = model_config(run, folder_of(run, options.run))
    run = run.filled_by(model)
    run.check_ranks(options.ranks)
    check_sources(run)
    return run, model


def folder_of(run: RunConfig, file: Path) -> Path:
    """What paths of a run are relative to: the folder of its file; with MindFormers, where the command is typed."""
    return Path.cwd() if run.origin.mindformers else file.absolute().parent


def model_config(run: RunConfig, folder: Path) -> CheckedConfig:
    """The config of the run's model: of the run itself, or of a folder, a GGUF file, the zoo or the hub."""
    if run.model.config is not None:
        return config_of(run.model.config, "model.config")
    named = str(run.model.path)
    here = folder / named
    if not here.exists() and is_on_hub(named):
        return read_config(fetch_config(named))
    return find_config(str(here.absolute()) if here.exists() else named)


def check_sources(run: RunConfig) -> None:
    """Raise a ConfigError where the run has nothing to read."""
    key = "data.eval" if run.evaluate.only else "data.train"
    if not (run.data.eval if run.evaluate.only else run.data.train):
        raise ConfigError(f"{key} names no rows: give it files, such as {key}=rows.jsonl")


def _say_without_effect(run: RunConfig, model: CheckedConfig) -> None:
    """Keys that resemble one that acts are said; the others are counted, and listed by --dry-run."""
    found = without_effect(run, model)
    for name, reason in found.items():
        if "did you mean" in reason:
            say(f"{name}: {reason}")
    if found:
        say(f"{len(found)} fields have no effect here; --dry-run lists them")


def _train(run: RunConfig, folder: Path) -> int:
    from modelwright.cli.training_bar import training_bar
    from modelwright.serving.held_out_answers import answers_of
    from modelwright.training.report import RunReport
    from modelwright.training.trainer import Trainer

    count = run.evaluate.generate
    with training_bar() as progress:
        report = RunReport(Path(run.output), run.log, say, progress)
        answers = answers_of(run.data, count, folder) if count else None
        ended = Trainer(run, report=report, base=folder, answers=answers).fit()
    say(ended.reason)
    return ended.code
