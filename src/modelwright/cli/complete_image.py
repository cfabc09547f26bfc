"""``modelwright complete-image``: keeps the top of a picture, samples the rest, and writes a contact sheet.

Imports neither torch nor transformers; what runs the model is imported when it is known which.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from modelwright.cli.complete_image_options import ColourSampling, CompleteImageOptions, kept_rows
from modelwright.cli.console import errors, say, write
from modelwright.cli.files import write_whole
from modelwright.cli.interrupt import INTERRUPTED
from modelwright.cli.memory import peak_memory
from modelwright.cli.still import cut_middle, open_still
from modelwright.cli.streams import is_stdout
from modelwright.errors import ConfigError
from modelwright.processing.contact_sheet import contact_sheet
from modelwright.processing.pixel_settings import PixelSettings
from modelwright.processing.pixels import Pixels


class Completer(Protocol):
    """A model that continues rows of tokens: known by its small files at first, its weights read by ``load``.

    Attributes:
        name: what the user called it.
        settings: its palette and the size of its pictures.
        start_token: the token before the first pixel; the colours are those below it.
        positions: tokens it can read in a row.
        device: where it runs.
    """

    name: str
    settings: PixelSettings
    start_token: int
    positions: int
    device: str

    def load(self) -> None:
        """Read the weights."""
        ...

    def complete(
        self, rows: np.ndarray, new_tokens: int, sampling: ColourSampling, seed: int, tick: Callable[[], None]
    ) -> np.ndarray:
        """int64 ``[n, tokens + new_tokens]`` from ``rows [n, tokens]``; ``tick`` is called after each token."""
        ...


@dataclass(frozen=True)
class Completion:
    """What was sampled, and what it took.

    Attributes:
        ids: int64 ``[n, pixels]``, palette indices in raster order.
        kept: how many of each row's pixels were given.
        seed: the one that was used, drawn where none was asked for.
        load_seconds, seconds: for the weights, and for sampling.
    """

    ids: np.ndarray
    kept: int
    seed: int
    load_seconds: float
    seconds: float

    @property
    def new_tokens(self) -> int:
        """Pixels sampled, of all samples together."""
        return len(self.ids) * (self.ids.shape[1] - self.kept)


def run_complete_image(options: CompleteImageOptions) -> int:
    """Check what can be checked, load, sample, and write the sheet; returns the exit status."""
    picture = None if options.picture is None else open_still(options.picture)
    completer = _completer(options)
    pixels = _fitting_pixels(completer)
    height, width = pixels.settings.height, pixels.settings.width
    rows = kept_rows(options.keep, height)
    original = None
    if picture is not None:
        original = pixels.encode(pixels.fit([cut_middle(picture, str(options.picture), width, height)]))[0]
    try:
        done = _complete(options, completer, original, rows * width, height * width)
    except KeyboardInterrupt:
        say(f"(stopped, {options.output} was not written)")
        return INTERRUPTED
    shown = None if original is None else pixels.decode(original)[0]
    _save(options, contact_sheet(pixels.decode(done.ids), shown, rows))
    _report(options, done, pixels.settings, rows, completer.device)
    return 0


def _completer(options: CompleteImageOptions) -> Completer:
    if options.onnx is not None:
        from modelwright.cli.complete_with_onnx import OnnxCompleter

        return OnnxCompleter(options.onnx)
    from modelwright.cli.complete_with_torch import TorchCompleter

    return TorchCompleter(options.model, options.place.dtype, options.place.device)


def _fitting_pixels(completer: Completer) -> Pixels:
    """The model's palette and size, for pictures that are always resized; a ConfigError where they do not fit it."""
    pixels = Pixels(completer.settings.changed(do_resize=True, do_color_quantize=True))
    height, width = pixels.settings.height, pixels.settings.width
    if pixels.start_token != completer.start_token:
        raise ConfigError(
            f"{completer.name}: clusters holds {pixels.start_token} colours and must hold vocab_size - 1 "
            f"({completer.start_token})"
        )
    if height * width > completer.positions:
        raise ConfigError(
            f"{completer.name}: size {height} x {width} has {height * width} pixels and must have at most n_positions "
            f"({completer.positions})"
        )
    return pixels


def _complete(
    options: CompleteImageOptions, completer: Completer, original: np.ndarray | None, kept: int, pixels: int
) -> Completion:
    start = time.perf_counter()
    completer.load()
    loaded = time.perf_counter()
    given = np.full((options.count, 1 + kept), completer.start_token, np.int64)
    if original is not None:
        given[:, 1:] = original[:kept]
    seed = secrets.randbits(31) if options.sampling.seed is None else options.sampling.seed
    with _bar(pixels - kept) as tick:
        rows = completer.complete(given, pixels - kept, options.sampling, seed, tick)
    return Completion(rows[:, 1:], kept, seed, loaded - start, time.perf_counter() - loaded)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
    """A bar of the pixels sampled, gone when they are; nothing where stderr is no terminal."""
    if not errors.is_terminal:
        yield lambda: None
        return
    columns = (TextColumn("sampling pixels"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as bars:
        task = bars.add_task("", total=total)
        yield lambda: bars.advance(task)


def _save(options: CompleteImageOptions, sheet: Any) -> None:
    with BytesIO() as content:
        sheet.save(content, format="PNG")
        write_whole(options.output, content.getvalue(), f"--output {options.output}")


def _report(options: CompleteImageOptions, done: Completion, size: PixelSettings, rows: int, device: str) -> None:
    samples = "1 sample" if options.count == 1 else f"{options.count} samples"
    tell, end = (say, "") if is_stdout(options.output) else (write, "\n")  # a picture is all that stdout may hold
    rate = done.new_tokens / done.seconds
    if options.as_json:
        tell(json.dumps(_as_object(options, done, size, rows)) + end)
    else:
        shape = f"{size.height} x {size.width} pixels, {rows} of {size.height} rows kept"
        tell(f"{options.output}: {samples} of {shape}, seed {done.seed}" + end)
    if options.stats:
        say(f"kept         {done.kept} pixels of each picture")
        say(f"sampled      {done.new_tokens} pixels in {done.seconds:.3f} s, {samples} together")
        say(f"speed        {rate:.1f} pixels/s, {rate / options.count:.1f} of each sample")
        say(f"peak memory  {peak_memory(device)}")


def _as_object(options: CompleteImageOptions, done: Completion, size: PixelSettings, rows: int) -> dict[str, Any]:
    """The object of ``--json``; samples are palette indices in raster order, seconds are wall clock."""
    return {
        "output": str(options.output),
        "seed": done.seed,
        "size": {"height": size.height, "width": size.width},
        "kept_rows": rows,
        "samples": done.ids.tolist(),
        "usage": {"prompt_tokens": 1 + done.kept, "completion_tokens": done.new_tokens},
        "timings": {
            "load_seconds": round(done.load_seconds, 4),
            "total_seconds": round(done.seconds, 4),
            "tokens_per_second": round(done.new_tokens / done.seconds, 4),
        },
    }
