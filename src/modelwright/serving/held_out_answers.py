"""What a model answers to held-out rows, by the engine: each is given up to what it learns last, which is drawn."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from modelwright.data.documents import UNLEARNED, Document, Encoder
from modelwright.data.encoding import encoder_of
from modelwright.data.examples import BrokenRow, Chat, Example, Picture, Source, Text, Tokens
from modelwright.data.settings import DataSettings, EncodingSettings
from modelwright.data.sources import open_source
from modelwright.engine.complete import complete
from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams
from modelwright.families import family_of, resolve
from modelwright.processing.batching import ProcessedPrompt
from modelwright.processing.contact_sheet import contact_sheet
from modelwright.processing.images import load_image

LEAST_TOKENS, MOST_TOKENS = 96, 512
"""An answer ends at the latest after twice the tokens of the row's own, but no fewer and no more than these."""
_AT_ONCE = 16
_OF_A_TEXT = 32
"""Tokens of a plain text that are given, or half of it where it is shorter."""


@dataclass(frozen=True)
class HeldOutAnswer:
    """One row's answer.

    Attributes:
        place: the row's file and line.
        prompt: what the model was given, as it reads it.
        wanted: what the row learns last; None where any continuation goes.
        said: what the model draws greedily in its stead.
        exact: whether the two are one text, white space at their ends aside; None where nothing is wanted.
        pictures: what was shown, as `processing.load_image` reads it.
        drawn: the picture that was drawn, beside what was kept of the row's; None where words are drawn.
    """

    place: str
    prompt: str
    wanted: str | None
    said: str
    exact: bool | None = None
    pictures: tuple[Any, ...] = ()
    drawn: Image.Image | None = None


def answers_of(data: DataSettings, count: int, base: Path) -> Callable[[Any, Any], Mapping[str, list[HeldOutAnswer]]]:
    """What gives a model and its processor's answers to the first ``count`` rows of each set of ``data.eval``.

    Args:
        base: the folder that paths are relative to.
    """

    def answers(model: Any, processor: Any) -> Mapping[str, list[HeldOutAnswer]]:
        encoder = answer_encoder_for(processor, data, model)
        root, cache = (None if each is None else Path(each) for each in (data.root, data.cache))
        sources = [open_source(part, root, base, cache) for part in data.eval]
        rows = {source.name: _first(source, count, encoder) for source in sources}
        return {name: answer_rows(model, processor, encoder, those) for name, those in rows.items()}

    return answers


def encoder_for(processor: Any, data: EncodingSettings, model: Any) -> Encoder:
    """The encoder of a model's rows, with its family's chat template where the tokenizer brings none."""
    template = family_of(model).chat_template
    return encoder_of(
        processor,
        data,
        template=None if template is None else resolve(template),
        vocabulary=model.config.get_text_config().vocab_size,
    )


def answer_encoder_for(processor: Any, data: EncodingSettings, model: Any) -> Encoder:
    """The encoder for `answer_rows`: of rows that are learned whole the answers are asked, too."""
    part: Any = data
    return encoder_for(processor, replace(part, labels="assistant") if data.labels == "all" else data, model)


def _first(source: Source, count: int, encoder: Encoder) -> list[Example]:
    """The first rows that can be read and made documents of; each is made again when it is answered."""
    rows: list[Example] = []
    for number in range(len(source)):
        if len(rows) == count:
            break
        with suppress(BrokenRow):
            encoder(row := source[number])
            rows.append(row)
    return rows


def answer_rows(model: Any, processor: Any, encoder: Encoder, rows: Sequence[Example]) -> list[HeldOutAnswer]:
    """Answers of a model in evaluation mode.

    Args:
        model: as the engine serves it; its weights may be others at the next call.
        processor: the model's processor; the tokenizer of a model that reads words alone.
        encoder: of `answer_encoder_for`.

    Raises:
        RequestError: a row that cannot be read.
        RequestFailed: the model's scores are no numbers.
    """
    pixels = getattr(processor, "pixels", None)
    if pixels is not None:
        return [_drawn(model, pixels, row) for row in rows]
    tokenizer = getattr(processor, "tokenizer", processor)
    documents = [encoder(row) for row in rows]
    borders = [_border(document, row) for document, row in zip(documents, rows, strict=True)]
    longest = max((len(document) for document in documents), default=1)
    engine = Engine(model, EngineConfig(max_batch=_AT_ONCE, token_budget=max(longest, 1024)), tokenizer)
    ends = [
        (*engine.ends, *_own_end(border, document, tokenizer))
        for border, document in zip(borders, documents, strict=True)
    ]
    params = [_params(*each, engine) for each in zip(borders, documents, ends, strict=True)]
    prompts = [_prompt(document, border[0]) for document, border in zip(documents, borders, strict=True)]
    results = engine.generate(prompts, params)
    return [
        _answer(row, document, border, result.completions[0].tokens, tokenizer, own)
        for row, document, border, result, own in zip(rows, documents, borders, results, ends, strict=True)
    ]


def exact_share(answers: Sequence[HeldOutAnswer]) -> float | None:
    """The share of answers that are exactly what was wanted; None where nothing was."""
    judged = [answer.exact for answer in answers if answer.exact is not None]
    return sum(judged) / len(judged) if judged else None


def _border(document: Document, row: Example) -> tuple[int, int, bool]:
    """Where the answer begins and ends in the document's ids, and whether it is the only right one."""
    free = isinstance(row.content, Text) or (isinstance(row.content, Tokens) and row.content.labels is None)
    if free:
        start = max(1, min(_OF_A_TEXT, len(document.ids) // 2))
        return start, len(document.ids), False
    learned = np.flatnonzero(document.labels != UNLEARNED)
    end = int(learned[-1]) + 1
    unlearned = np.flatnonzero(document.labels[:end] == UNLEARNED)
    return int(unlearned[-1]) + 1, end, True


def _own_end(border: tuple[int, int, bool], document: Document, tokenizer: Any) -> tuple[int, ...]:
    """The added token that is learned at the end of an answer, as templates print the end of a turn."""
    _, end, judged = border
    last = int(document.ids[end - 1])
    return (last,) if judged and last in tokenizer.backend_tokenizer.get_added_tokens_decoder() else ()


def _params(border: tuple[int, int, bool], document: Document, ends: Sequence[int], engine: Engine) -> SamplingParams:
    start, end, _ = border
    room = engine.context - start
    most = max(1, min(max(2 * (end - start), LEAST_TOKENS), MOST_TOKENS, room))
    return SamplingParams(temperature=0.0, max_tokens=most, eos_token_ids=tuple(ends))


def _prompt(document: Document, border: int) -> ProcessedPrompt:
    """The document up to the border; its pictures all stand before it, since answers hold none."""
    plain = ProcessedPrompt.of_tokens(document.ids[:border].tolist())
    if document.picture_mask is None or document.tiles is None:
        return plain
    mask = document.picture_mask
    places = int(mask.sum())
    return ProcessedPrompt(
        text="",
        input_ids=plain.input_ids,
        labels=plain.labels,
        images_seq_mask=mask[:border],
        images=document.tiles,
        images_spatial_crop=np.array(document.grids, np.int64).reshape(-1, 2),
        num_image_tokens=(places,),
    )


def _answer(
    row: Example,
    document: Document,
    border: tuple[int, int, bool],
    tokens: Sequence[int],
    tokenizer: Any,
    ends: Sequence[int],
) -> HeldOutAnswer:
    start, end, judged = border
    said = _text(tokens, tokenizer, ends)
    wanted = _text(document.ids[start:end].tolist(), tokenizer, ends)
    shown = document.ids[:start]
    if document.picture_mask is not None:  # of a picture's many rows one is enough to read
        mask = document.picture_mask[:start]
        shown = shown[~mask | np.concatenate([[True], ~mask[:-1]])]
    return HeldOutAnswer(
        place=str(row.place),
        prompt=tokenizer.decode(shown.tolist(), skip_special_tokens=False),
        wanted=wanted,
        said=said,
        exact=said.strip() == wanted.strip() if judged else None,
        pictures=_shown(row),
    )


def _text(ids: Sequence[int], tokenizer: Any, ends: Sequence[int]) -> str:
    kept = list(ids)
    while kept and kept[-1] in ends:
        kept.pop()
    return tokenizer.decode(kept, skip_special_tokens=False)


def _shown(row: Example) -> tuple[Any, ...]:
    return tuple(picture.source for picture in row.content.pictures) if isinstance(row.content, Chat) else ()


def _drawn(model: Any, pixels: Any, row: Example) -> HeldOutAnswer:
    """The lower half of a picture, drawn greedily from the upper one."""
    assert isinstance(row.content, Picture)
    whole = pixels.encode(pixels.fit([load_image(row.content.picture.source)]))  # [1, pixels]
    height, width = pixels.settings.height, pixels.settings.width
    kept = height // 2
    given = np.concatenate([[[pixels.start_token]], whole[:, : kept * width]], axis=1)
    ids = torch.from_numpy(given.astype(np.int64)).to(model.device)
    made = complete(model, ids, (height - kept) * width, temperature=0.0).cpu().numpy()[:, 1:]
    sheet = contact_sheet(pixels.decode(made), pixels.decode(whole)[0], kept)
    return HeldOutAnswer(str(row.place), "", None, "", drawn=sheet)
