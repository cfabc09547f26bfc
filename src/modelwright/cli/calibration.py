"""The file of ``quantize --calibrate``: a text, or lines such as ``generate`` reads, as passes of a model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelwright.cli.asking import FORMS, SAMPLING, read_prompt
from modelwright.cli.held_out import WINDOW
from modelwright.cli.lines import read_lines
from modelwright.errors import RequestError
from modelwright.processing.batching import ProcessedPrompt
from modelwright.serving.load import Loaded
from modelwright.serving.prompts import encode_text

MOST_TOKENS = 1 << 16
"""Tokens that a calibration reads; what a file holds beyond is left aside."""


@dataclass(frozen=True)
class Passes:
    """What a model is to read: keyword arguments of each pass, and tokens of all; ``whole`` if all of the file is."""

    batches: list[dict[str, Tensor]]
    tokens: int
    whole: bool


def read_passes(path: Path, loaded: Loaded) -> Passes:
    """The passes of a file: a ``.jsonl``'s lines each on its own, any other file as one text, in windows.

    Raises:
        RequestError: the file cannot be read, a line cannot, or nothing is in it.
    """
    batches: list[dict[str, Tensor]] = []
    tokens, prompts = 0, _prompts(path, loaded)
    for prompt in prompts:
        for batch in _batches(prompt, loaded):
            if tokens >= MOST_TOKENS:
                return Passes(batches, tokens, whole=False)
            batches.append(batch)
            tokens += batch["input_ids"].shape[1]
    if not tokens:
        raise RequestError(f"--calibrate {path} holds no text")
    return Passes(batches, tokens, whole=True)


def _prompts(path: Path, loaded: Loaded) -> Iterator[ProcessedPrompt]:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"--calibrate {path} cannot be read: {why}") from error
    if path.suffix != ".jsonl":
        if loaded.tokenizer is None:
            raise RequestError(
                f"--calibrate {path} is a text, and the tokens of this model are colours: give a .jsonl file whose "
                "lines have prompt_token_ids"
            )
        yield from [encode_text(loaded, content)] if content.strip() else []
        return
    for line in read_lines(content.splitlines(), {}):
        try:
            yield read_prompt(loaded, line.fields((*SAMPLING, *FORMS)))
        except RequestError as error:
            raise RequestError(f"--calibrate {path}, line {line.number}: {error}") from error


def _batches(prompt: ProcessedPrompt, loaded: Loaded) -> Iterator[dict[str, Tensor]]:
    """A prompt with its pictures in one pass, others in windows as wide as the model may read."""
    config: Any = loaded.model.config.get_text_config()
    most, vocabulary = config.max_position_embeddings, config.vocab_size
    ids = torch.from_numpy(prompt.input_ids)[None]
    if ids.numel() and int(ids.max()) >= vocabulary:
        raise RequestError(f"--calibrate: token {int(ids.max())} must be below the vocabulary ({vocabulary})")
    device = loaded.model.device
    if not prompt.picture_tokens:
        windows = ids.split(min(WINDOW, most), dim=1)
        yield from ({"input_ids": window.to(device)} for window in windows if window.numel())
        return
    if len(prompt) > most:
        raise RequestError(f"--calibrate: a prompt with pictures has {len(prompt)} tokens, and the model reads {most}")
    arrays = {name: getattr(prompt, name) for name in ("images", "images_seq_mask", "images_spatial_crop")}
    yield {"input_ids": ids.to(device)} | {name: torch.from_numpy(a)[None].to(device) for name, a in arrays.items()}
