"""Generation from an exported folder with onnxruntime and numpy alone; neither torch nor transformers is imported."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelwright.errors import RequestError
from modelwright.export.manifest import Manifest, read_object
from modelwright.export.sampling import Sampling
from modelwright.export.session import DecoderSession

OnToken = Callable[[np.ndarray], None]


@dataclass(frozen=True)
class Continuation:
    """How rows are continued: at most ``max_new_tokens`` more, chosen by ``sampling``, until one of ``ends``.

    ``pad`` fills up rows that ended early; where it is None the token that ended them does.
    """

    max_new_tokens: int
    sampling: Sampling
    seed: int | None = None
    ends: tuple[int, ...] = ()
    pad: int | None = None
    chunk: int | None = None
    on_token: OnToken | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max_new_tokens", self.max_new_tokens, 0),
            ("chunk", self.chunk, 1),
            ("seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise RequestError(f"{name} must be at least {least}, got {value}")


class OnnxDecoder:
    """The decoder of a folder that ``modelwright export onnx`` made.

    Args:
        folder: the folder.
        threads: of one operator; None leaves the number to onnxruntime.

    Raises:
        CheckpointError: the folder is no such folder, or its graph cannot be opened.
        ConfigError: onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path, threads: int | None = None):
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.config = _read(self.folder / "config.json")
        self.generation_config = _read(self.folder / "generation_config.json")
        self.decoder = DecoderSession(self.folder, self.manifest, threads)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a row: the generation config's, else the config's; none where neither names any."""
        return _as_tuple(self._setting("eos_token_id"))

    @property
    def pad_token_id(self) -> int | None:
        """The token that fills up rows which ended early."""
        return self._setting("pad_token_id")

    def generate(
        self,
        input_ids: Any,
        max_new_tokens: int,
        *,
        attention_mask: Any = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        eos_token_id: int | Iterable[int] | None = None,
        chunk: int | None = None,
        on_token: OnToken | None = None,
    ) -> np.ndarray:
        """Continue every row of ``input_ids``.

        Args:
            input_ids: integers ``[batch, tokens]``.
            max_new_tokens: how many tokens to add at most; it ends earlier when every row has ended.
            attention_mask: ``[batch, tokens]`` with 0 at padding, which stands on the left. Without one, pad tokens
                are padding where they occur, as in transformers' ``generate``.
            temperature, top_k, top_p: see :class:`Sampling`; temperature 0 is greedy.
            seed: makes sampling repeatable.
            eos_token_id: the tokens that end a row; by default :attr:`eos_token_ids`, and ``()`` for none.
            chunk: read the prompt this many tokens at a time, to bound memory; None reads it at once.
            on_token: called with the new tokens, int64 ``[batch]``, after each step.

        Returns:
            int64 ``[batch, tokens + new]``; rows that ended early are filled with the pad token, or with what ended
            them where there is none.

        Raises:
            RequestError: an argument that does not fit the model or the others.
        """
        if "embed" in self.manifest.graphs:
            family = self.manifest.family
            raise RequestError(f"{self.folder} holds a {family}, whose decoder reads rows: use OnnxPictureDecoder")
        how = self.continuation(max_new_tokens, temperature, top_k, top_p, seed, eos_token_id, chunk, on_token)
        ids, mask = self.checked_prompt(input_ids, attention_mask, max_new_tokens)
        return continue_rows(self.decoder, ids, mask, how, _as_content)

    def continuation(
        self,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int | None,
        eos_token_id: int | Iterable[int] | None,
        chunk: int | None,
        on_token: OnToken | None,
    ) -> Continuation:
        """The arguments of :meth:`generate` that say how rows are continued, checked."""
        ends = self.eos_token_ids if eos_token_id is None else _as_tuple(eos_token_id)
        sampling = Sampling(temperature, top_k, top_p)
        return Continuation(max_new_tokens, sampling, seed, ends, self.pad_token_id, chunk, on_token)

    def checked_prompt(self, input_ids: Any, attention_mask: Any, max_new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask as int64 ``[batch, tokens]``; raises where they do not fit the model or each other."""
        ids = self._checked_ids(input_ids)
        mask = self._checked_mask(attention_mask, ids)
        self._check_room(ids.shape[1], max_new_tokens)
        return ids, mask

    def _setting(self, name: str) -> Any:
        own = self.generation_config.get(name)
        return self.config.get(name) if own is None else own

    def _checked_ids(self, input_ids: Any) -> np.ndarray:
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or 0 in ids.shape:
            raise RequestError(f"input_ids must be [batch, tokens], both at least 1, got {list(ids.shape)}")
        if ids.dtype.kind not in "iu":
            raise RequestError(f"input_ids must be integers, got {ids.dtype}")
        low, high, rows = ids.min(), ids.max(), self.manifest.vocab_size
        if low < 0 or high >= rows:
            found = low if low < 0 else high
            raise RequestError(f"input_ids must be at least 0 and below vocab_size ({rows}), got {found}")
        return ids.astype(np.int64)

    def _checked_mask(self, attention_mask: Any, ids: np.ndarray) -> np.ndarray:
        if attention_mask is None:
            pad = self.pad_token_id
            if pad is None or pad in self.eos_token_ids or not self.manifest.takes_mask:
                return np.ones_like(ids)
            return (ids != pad).astype(np.int64)
        mask = np.asarray(attention_mask)
        if mask.shape != ids.shape:
            raise RequestError(f"attention_mask must be {list(ids.shape)} as input_ids, got {list(mask.shape)}")
        if not np.isin(mask, (0, 1)).all():
            raise RequestError("attention_mask must hold 0 (padding) and 1 only")
        if not mask[:, -1].all():
            raise RequestError("padding must stand on the left: the last column of attention_mask has a 0")
        if not self.manifest.takes_mask and not mask.all():
            raise RequestError("this model attends without a mask: attention_mask must be all 1")
        return mask.astype(np.int64)

    def _check_room(self, tokens: int, new: int) -> None:
        limit, needed = self.manifest.max_positions, tokens + max(new - 1, 0)  # the last one is not read again
        if limit is not None and needed > limit:
            raise RequestError(f"{tokens} tokens and {new} new ones need {needed} positions, and the model has {limit}")


def continue_rows(
    decoder: DecoderSession,
    ids: np.ndarray,
    mask: np.ndarray,
    how: Continuation,
    content_of: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    prompt: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """``ids`` ``[batch, tokens]`` with the new tokens behind them, all checked.

    Args:
        mask: ``[batch, tokens]`` with 0 at padding.
        content_of: new tokens ``[batch, 1]`` to the decoder's inputs.
        prompt: the decoder's inputs for ``ids``, where ``content_of`` cannot tell them.
    """
    if how.max_new_tokens == 0:
        return ids
    random = np.random.default_rng(how.seed)
    scores, past = decoder.prefill(content_of(ids) if prompt is None else prompt, mask, how.chunk)
    ended = np.zeros(len(ids), dtype=bool)
    steps = [ids]
    while True:
        chosen = how.sampling.choose(scores, random)
        fill = steps[-1][:, -1] if how.pad is None else how.pad
        steps.append(np.where(ended, fill, chosen)[:, None])
        ended |= np.isin(chosen, how.ends)
        if how.on_token is not None:
            how.on_token(steps[-1][:, 0])
        if ended.all() or len(steps) > how.max_new_tokens:
            return np.concatenate(steps, axis=1)
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        logits, past = decoder.run(content_of(steps[-1]), mask, past)
        scores = logits[:, -1]


def _as_content(ids: np.ndarray) -> dict[str, np.ndarray]:
    return {"input_ids": ids}


def _as_tuple(tokens: int | Iterable[int] | None) -> tuple[int, ...]:
    if tokens is None:
        return ()
    return (tokens,) if isinstance(tokens, int) else tuple(tokens)


def _read(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}
