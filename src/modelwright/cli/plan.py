"""``modelwright plan``: finds a config, hands it to the planner, shows the answer; no weights are read or fetched."""

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download

from modelwright import zoo
from modelwright.cli.console import say, write
from modelwright.cli.files import check_place, write_whole
from modelwright.cli.plan_tables import show
from modelwright.configs import CheckedConfig
from modelwright.errors import CheckpointError, RequestError
from modelwright.families import family_of
from modelwright.families.read import read_config
from modelwright.planner import device as devices
from modelwright.planner.plan import Plan, plan
from modelwright.planner.plot import draw
from modelwright.planner.report import as_object
from modelwright.serving.names import user_path

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_IMAGE = re.compile(r"([1-9]\d{0,5})[xX]([1-9]\d{0,5})")


@dataclass(frozen=True)
class PlanOptions:
    """The options of ``modelwright plan``, named as there; None is one that was not given."""

    config: str
    context: int | None = None
    batch: int | None = None
    dtype: str | None = None
    kv_dtype: str | None = None
    quant: str | None = None
    image: str | None = None
    device: str | None = None
    train: bool = False
    optimizer: str | None = None
    recompute: bool | None = None
    attention: str | None = None
    as_json: bool = False
    plot: Path | None = None

    def check(self) -> None:
        """Raise a RequestError for options that contradict each other, before anything is read."""
        for name, given in (("--optimizer", self.optimizer), ("--recompute", self.recompute)):
            if given is not None and not self.train:
                raise RequestError(f"{name} says how to train, so it needs --train")
        if self.plot is not None and self.plot.suffix.lower() != ".svg":
            raise RequestError(f"--plot {self.plot}: the picture is an SVG, so its name must end in .svg")
        if self.plot is not None:
            check_place(self.plot, f"--plot {self.plot}")


def run_plan(options: PlanOptions) -> None:
    """Print the plan as tables or as one JSON object, and draw it if asked."""
    options.check()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = find_config(options.config)
    result = plan(
        config,
        context=options.context,
        batch=options.batch,
        dtype=options.dtype,
        kv_dtype=options.kv_dtype,
        quant=options.quant,
        image=None if options.image is None else parse_image(options.image),
        devices=None if options.device is None else devices.parse_devices(options.device),
        train=options.train,
        optimizer=options.optimizer or "adamw",
        recompute=options.recompute,
        attention=options.attention,
    )
    name = options.config.rstrip("/").rpartition("/")[2] or options.config
    if options.as_json:
        write(json.dumps(as_object(result), indent=2) + "\n")
    else:
        show(result, name)
    if options.plot is not None:
        _draw(options.plot, result, name)


def find_config(name: str) -> CheckedConfig:
    """The config of a zoo name (which comes first), a folder, a ``config.json``, a YAML, a GGUF file or a hub id.

    Raises:
        CheckpointError: it is nothing of these, or the hub does not answer.
        ConfigError: what it holds breaks a rule.
    """
    if name in zoo.names():
        return read_config(zoo.path(name))
    path = user_path(name)
    if path.suffix == ".gguf" and path.is_file():
        return _config_in_gguf(path)
    if os.path.lexists(path):
        return _with_ties_as_stored(read_config(path), path if path.is_dir() else path.parent)
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"{name} is no folder or file here, no name of the zoo ({', '.join(zoo.names()) or 'which is empty'}) and "
            "no hub id like org/name"
        )
    try:
        return read_config(hf_hub_download(name, "config.json"))
    except OSError as error:
        raise CheckpointError(
            f"{name} is not here, and the hub did not answer with its config.json: {error}"
        ) from error


def _with_ties_as_stored(config: CheckedConfig, folder: Path) -> CheckedConfig:
    """The config of a folder whose tensors decide, as in loading, whether a head that it ties is the embedding."""
    if not config.get_text_config().tie_word_embeddings or not any(folder.glob("*.safetensors")):
        return config
    from modelwright.checkpoints.dialect import other_dialects  # which needs torch, as the comparison does
    from modelwright.checkpoints.shards import headers_of
    from modelwright.checkpoints.ties import settle_ties

    try:
        found = headers_of(sorted(folder.glob("*.safetensors")))
        other = next((dialect.ties for dialect in other_dialects().values() if dialect.holds(found)), None)
        if other is not None:
            settle_ties(config, other, found)
        else:
            family_of(config).network_class.settle_ties(config, found)
    except CheckpointError:  # files that cannot be read decide nothing
        pass
    return config


def _config_in_gguf(path: Path) -> CheckedConfig:
    from modelwright.checkpoints.gguf.folder import config_of  # which reads tensors, and so needs torch

    values = config_of(path)
    return family_of(values).config_class.from_dict(values)


def parse_image(text: str) -> tuple[int, int]:
    """``1024x768`` as (width, height); a RequestError for anything else."""
    match = _IMAGE.fullmatch(text.strip())
    if match is None:
        raise RequestError(f"--image is a picture's width and height in pixels, like 1024x768; got {text!r}")
    return int(match[1]), int(match[2])


def _draw(path: Path, result: Plan, name: str) -> None:
    write_whole(path, draw(result, name).encode("utf-8", "replace"), f"--plot {path}")
    say(f"{path}: the memory of the fullest rank, and memory against context")
