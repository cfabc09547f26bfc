"""The marks around a text: its beginning and end of sentence, put there once, and by whom its files say."""

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import processors


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """A text with the marks that belong around it; one that begins or ends with its mark gets no second one."""
    ids = tokenizer.encode(text)
    bos, eos = _written(tokenizer.bos_token_id, tokenizer), _written(tokenizer.eos_token_id, tokenizer)
    if bos and text.startswith(bos) and ids[:2] == [tokenizer.bos_token_id] * 2:
        ids = ids[1:]
    if eos and text.endswith(eos) and ids[-2:] == [tokenizer.eos_token_id] * 2:
        ids = ids[:-1]
    return ids


def end_tokens(of_model: Iterable[int], tokenizer: Any, more: Iterable[int] = ()) -> tuple[int, ...]:
    """The ends of sentence of a model and its tokenizer, and `more`: first those of the generation config.

    Args:
        tokenizer: None where there is none.
        more: such as the end of a turn (`processing.templates.turn_ends`).
    """
    end = None if tokenizer is None else tokenizer.eos_token_id
    return tuple(dict.fromkeys([*of_model, *(() if end is None else (end,)), *more]))


def _written(id_: int | None, tokenizer: Any) -> str | None:
    """How a token stands in a text."""
    return None if id_ is None else tokenizer.backend_tokenizer.id_to_token(id_)


def put_marks(tokenizer: Any, add_bos: bool | None, add_eos: bool | None) -> None:
    """Let texts get a beginning and an end of sentence, or none; None leaves it to ``tokenizer.json``."""
    bare, marked = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    start = next((i for i in range(len(marked)) if marked[i : i + len(bare)] == bare), 0)
    before, after = marked[:start], marked[start + len(bare) :]
    wanted_before = _with_mark(before, tokenizer.bos_token_id, add_bos, first=True)
    wanted_after = _with_mark(after, tokenizer.eos_token_id, add_eos, first=False)
    if (before, after) == (wanted_before, wanted_after):
        return
    ids = {tokenizer.convert_ids_to_tokens(id_): id_ for id_ in (*wanted_before, *wanted_after)}
    names = {id_: name for name, id_ in ids.items()}
    first, second = (
        [*(f"{names[id_]}:{part}" for id_ in wanted_before), f"${'AB'[part]}:{part}"]
        + [f"{names[id_]}:{part}" for id_ in wanted_after]
        for part in (0, 1)
    )
    template = processors.TemplateProcessing(single=first, pair=first + second, special_tokens=[*ids.items()])
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.Sequence([*_of_offsets(backend.post_processor), template])


def _with_mark(marks: list[int], mark: int | None, wanted: bool | None, *, first: bool) -> list[int]:
    if mark is None or not isinstance(wanted, bool) or wanted == (mark in marks):
        return marks
    if not wanted:
        return [id_ for id_ in marks if id_ != mark]
    return [mark, *marks] if first else [*marks, mark]


def _of_offsets(processor: Any) -> list[Any]:
    """Those of a post-processor's parts that add no marks but trim offsets."""
    if processor is None:
        return []
    state = json.loads(processor.__getstate__())
    parts = state["processors"] if state["type"] == "Sequence" else [state]
    return [processors.ByteLevel(trim_offsets=part["trim_offsets"]) for part in parts if part["type"] == "ByteLevel"]
