"""`Runner`, one step through the model: tokens packed into a row, logits of those that need them; it plans nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from modelwright.attention import PagedAttention, PagedBatch, PagePool
from modelwright.configs import CheckedConfig, LlamaConfig
from modelwright.engine.picture_rows import PictureRows
from modelwright.engine.prompt import Prompt
from modelwright.engine.step import Chunk, Step
from modelwright.errors import ConfigError
from modelwright.models import DeepseekVLV2ForCausalLM


@dataclass(frozen=True)
class Logits:
    """What a step computed.

    Attributes:
        drawing: ``[draws, vocabulary]``, a row for each sequence that draws, in the order of the chunks.
        prompts: for chunks of prompts whose own logits are wanted, by the sequence's id: ``[tokens, vocabulary]``.
    """

    drawing: Tensor
    prompts: dict[str, Tensor]


class Runner:
    """Runs steps of one model over its pools of pages.

    Args:
        model: a decoder with a language head, or one that sees pictures; in evaluation mode.
        pools: one for each layer.
        pictures: for a model that sees them.

    Raises:
        ConfigError: the config asks for attention that pages do not serve.
    """

    def __init__(self, model: Any, pools: Sequence[PagePool], pictures: PictureRows | None):
        config = model.config.get_text_config()
        if isinstance(config, LlamaConfig) and config.use_eod_attn_mask_compression:
            raise ConfigError("use_eod_attn_mask_compression must be False for the engine: its prompts are not packed")
        self._decoder = model.language if isinstance(model, DeepseekVLV2ForCausalLM) else model
        self._pools, self._pictures = pools, pictures
        self._embedding: nn.Module = self._decoder.get_input_embeddings()
        self.device: torch.device = model.get_input_embeddings().weight.device  # where tokens go in
        self._apart = _depends_on_length(config)

    @torch.inference_mode()
    def run(self, step: Step, prompts: Mapping[str, Prompt]) -> Logits:
        """The logits of a step; `prompts` holds, by the ids of their sequences, the prompts that have pictures."""
        for pool in self._pools:
            pool.copy(step.copies)
        groups = [(chunk,) for chunk in step.chunks] if self._apart else [step.chunks]
        passes = [self._pass(group, prompts) for group in groups]
        drawing = torch.cat([one.drawing for one in passes]) if len(passes) > 1 else passes[0].drawing
        return Logits(drawing, {id_: rows for one in passes for id_, rows in one.prompts.items()})

    def _pass(self, chunks: Sequence[Chunk], prompts: Mapping[str, Prompt]) -> Logits:
        """One forward pass over the chunks, packed into a row."""
        counts, ends = [chunk.count for chunk in chunks], [chunk.end for chunk in chunks]
        tables = [chunk.sequence.table for chunk in chunks]
        batch = PagedBatch.of(counts, ends, tables, self._pools[0].page_size, self.device)
        ids = [token for chunk in chunks for token in chunk.sequence.tokens[chunk.start : chunk.end]]
        positions = [position for chunk in chunks for position in range(chunk.start, chunk.end)]
        kept = _Kept.of(chunks)
        logits = self._decoder(
            **self._inputs(ids, chunks, prompts),
            position_ids=torch.tensor([positions], device=self.device),
            attention=PagedAttention(self._pools, batch),
            use_cache=False,
            logits_to_keep=torch.tensor(kept.places, dtype=torch.int64, device=self.device),  # none, maybe
        ).logits[0]
        return Logits(logits[kept.drawing], {id_: logits[rows] for id_, rows in kept.prompts.items()})

    def _inputs(self, ids: list[int], chunks: Sequence[Chunk], prompts: Mapping[str, Prompt]) -> dict[str, Tensor]:
        """Token ids ``[1, tokens]``, or their embeddings where rows of pictures stand among them."""
        tokens = torch.tensor([ids], device=self.device)
        starts = accumulate((chunk.count for chunk in chunks), initial=0)
        seen = [
            (start - chunk.start, chunk, prompts[chunk.sequence.id])
            for start, chunk in zip(starts, chunks, strict=False)
            if chunk.sequence.id in prompts
        ]
        if not seen:
            return {"input_ids": tokens}
        embeds = self._embedding(tokens)
        for shift, chunk, prompt in seen:
            self._place_pictures(embeds[0], shift, chunk, prompt)
        return {"inputs_embeds": embeds}

    def _place_pictures(self, row: Tensor, shift: int, chunk: Chunk, prompt: Prompt) -> None:
        """Write the rows of pictures that fall into `chunk`, whose token `t` stands at ``row[t + shift]``."""
        assert self._pictures is not None  # a prompt with pictures is refused by a model that sees none
        for picture in prompt.pictures:
            inside = [i for i, place in enumerate(picture.places) if chunk.start <= place < chunk.end]
            if inside:
                (rows,) = self._pictures.of([picture])
                places = torch.tensor([picture.places[i] + shift for i in inside], device=row.device)
                row[places] = rows[inside[0] : inside[-1] + 1].to(row)


@dataclass(frozen=True)
class _Kept:
    """Which packed tokens get logits, and which of those rows serve whom."""

    places: list[int]
    drawing: list[int]
    prompts: dict[str, slice]

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> "_Kept":
        places, drawing, prompts, start = [], [], {}, 0
        for chunk in chunks:
            whole = _wants_prompt(chunk)
            first = len(places)
            places += range(start, start + chunk.count) if whole else [start + chunk.count - 1] * chunk.samples
            if whole:
                prompts[chunk.sequence.id] = slice(first, len(places))
            drawing += [len(places) - 1] * len(chunk.draws)
            start += chunk.count
        return cls(places, drawing, prompts)


def _wants_prompt(chunk: Chunk) -> bool:
    """Whether the logits of the chunk's tokens are wanted, as long as they are its prompt's."""
    sequence = chunk.sequence
    return sequence.prompt_logprobs and len(sequence.tokens) == len(sequence.prompt)


def _depends_on_length(config: CheckedConfig) -> bool:
    """Whether a token's rotation depends on its row's length, so that sequences cannot share a row."""
    rope = getattr(config, "rope", None)
    return rope is not None and rope.scaling is not None and rope.scaling.kind in ("dynamic", "dynamic_ntk")
