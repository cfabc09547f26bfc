"""``modelwright plan``: finds a config, hands it to the planner, shows the answer; no weights are read or fetched."""

import json
import logging
import os
import re
from pathlib import Path

from modelwright import zoo
from modelwright.cli.console import say, write
from modelwright.cli.files import write_whole
from modelwright.cli.plan_options import PlanOptions
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

_IMAGE = re.compile(r"([1-9]\d{0,5})[xX]([1-9]\d{0,5})")


def run_plan(options: PlanOptions, fetched: Path | None = None) -> None:
    """Print the plan as tables or as one JSON object, and draw it if asked; ``fetched`` is a hub model's config."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = read_config(fetched) if fetched is not None else find_config(options.config)
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
    """The config of a zoo name (which comes first), a folder, a ``config.json``, a YAML or a GGUF file.

    Raises:
        ConfigError: there is none, or what it holds breaks a rule.
    """
    if name in zoo.names():
        return read_config(zoo.path(name))
    path = user_path(name)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return _config_in_gguf(path)
    return _with_ties_as_stored(read_config(path), path if os.path.isdir(path) else path.parent)


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
