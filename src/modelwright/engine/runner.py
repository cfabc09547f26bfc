"""`Runner`, one step through the model: tokens packed into a row, logits of those that need them; it plans nothing."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate, chain, repeat

import torch
from torch import Tensor

from modelwright.attention import AttentionBackend, PagedAttention, PagedBatch, PagePool
from modelwright.attention.upcast import UpcastAttention
from modelwright.engine.graphs import DecodeGraphs
from modelwright.engine.model_pass import ModelPass
from modelwright.engine.page_moves import carry_out
from modelwright.engine.picture_rows import PictureRows
from modelwright.engine.prompt import PromptPicture
from modelwright.engine.served_model import ServedModel
from modelwright.engine.step import Chunk, Move, Step
from modelwright.ops.invariant import invariant_rows
from modelwright.parallel import Mesh, RankLost

Pictures = Mapping[str, Sequence[PromptPicture]]
"""The pictures of sequences that have any, by the sequences' ids."""


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
        served: the model.
        pools: one for each layer.
        pictures: for a model that sees them.
        host_pools: one for each layer in host memory, or none.
        mesh: the ranks that share the model; rank 0 runs steps, and the others `follow` it.
        graphs: for decodes, where they are captured.
        invariant: whether no row of a pass may depend on the others, see `ops.invariant`.
    """

    def __init__(
        self,
        served: ServedModel,
        pools: Sequence[PagePool],
        pictures: PictureRows | None,
        host_pools: Sequence[PagePool] = (),
        mesh: Mesh | None = None,
        graphs: DecodeGraphs | None = None,
        invariant: bool = False,
    ):
        self.serve(served, pools, host_pools, graphs)
        self._pictures, self._mesh, self._invariant = pictures, mesh or Mesh(), invariant
        self._in_step = True  # with the other ranks: false from the beginning of a pass to its end

    def serve(
        self,
        served: ServedModel,
        pools: Sequence[PagePool],
        host_pools: Sequence[PagePool] = (),
        graphs: DecodeGraphs | None = None,
    ) -> None:
        """Go on with a model that has become another one, over pools of its own."""
        self._served, self._pools, self._host_pools, self._graphs = served, pools, host_pools, graphs

    @torch.inference_mode()
    def run(self, step: Step, pictures: Pictures) -> Logits:
        """The logits of a step.

        Raises:
            RankLost: another rank ended, or an earlier pass failed after the others had begun it.
        """
        moves = chain([step.moves], repeat(()))  # before the first pass
        rows = self._rows(step.chunks)
        passes = [self._pass(chunks, before, pictures) for chunks, before in zip(rows, moves, strict=False)]
        drawing = torch.cat([one.drawing for one in passes]) if len(passes) > 1 else passes[0].drawing
        return Logits(drawing, {id_: rows for one in passes for id_, rows in one.prompts.items()})

    def _rows(self, chunks: Sequence[Chunk]) -> list[Sequence[Chunk]]:
        """The chunks that go through the model together: all of them, unless some rotate by their own length.

        Those go alone, and tokens that were drawn and are computed again go one by one, as they first did: a token is
        rotated by the length that its sequence had.
        """
        trained = self._served.trained_length
        if trained is None or all(chunk.end <= trained for chunk in chunks):
            return [chunks]
        return [(part,) for chunk in chunks for part in _as_first_read(chunk)]

    @torch.inference_mode()
    def follow(self) -> None:
        """Compute what rank 0 runs, until it lets go."""
        while (one := self._mesh.hear()) is not None:
            try:
                self._compute(one)
            except RankLost:
                raise
            except Exception:  # of what is computed, in all ranks alike: rank 0 says who is to blame
                if not self._mesh.all_failed():
                    raise

    def let_go(self) -> None:
        """Tell the ranks that follow to end, unless they are in the middle of something."""
        if self._in_step:
            self._mesh.tell(None)
        self._in_step = False

    def _pass(self, chunks: Sequence[Chunk], moves: tuple[Move, ...], pictures: Pictures) -> Logits:
        """One forward pass over the chunks, packed into a row."""
        kept = _Kept.of(chunks)
        one = ModelPass.of(chunks, kept.places, moves)
        if any(chunk.sequence.id in pictures for chunk in chunks):
            one = replace(one, embeds=self._embeds(one.tokens, chunks, pictures))
        logits = self._compute_together(one)
        drawing = logits[torch.tensor(kept.drawing, dtype=torch.int64, device=logits.device)]
        return Logits(drawing, {id_: logits[rows] for id_, rows in kept.prompts.items()})

    def _compute_together(self, one: ModelPass) -> Tensor:
        """Let every rank compute the pass; they add up their parts on the way."""
        if self._mesh.size == 1:
            return self._compute(one)
        if not self._in_step:
            raise RankLost("the ranks cannot go on: an earlier pass ended before its time, or they were let go")
        self._in_step = False
        self._mesh.tell(one.on_host())
        try:
            logits = self._compute(one)
        except RankLost:
            raise
        except Exception:
            self._in_step = self._mesh.all_failed()
            raise
        self._in_step = True
        return logits

    def _compute(self, one: ModelPass) -> Tensor:
        """The logits ``[places, vocabulary]`` of a pass."""
        with invariant_rows() if self._invariant else nullcontext():
            return self._forward(one)

    def _forward(self, one: ModelPass) -> Tensor:
        device = self._served.device
        carry_out(one.moves, self._pools, self._host_pools)
        if self._graphs is not None and (logits := self._graphs.logits(one)) is not None:
            return logits
        tokens = {"input_ids": torch.tensor([one.tokens], device=device)}
        all_wanted = one.places == [*range(len(one.tokens))]
        return self._served.decoder(
            **(tokens if one.embeds is None else {"inputs_embeds": one.embeds.to(device)}),
            position_ids=torch.tensor([one.positions], device=device),
            attention=self._attention(one),
            use_cache=False,
            tokens_to_keep=None if all_wanted else torch.tensor(one.places, dtype=torch.int64, device=device),
        ).logits[0]

    def _attention(self, one: ModelPass) -> AttentionBackend:
        size, device = self._pools[0].page_size, self._served.device
        batch = PagedBatch.of(one.counts, one.ends, one.tables, size, device)
        attention = PagedAttention(self._pools, batch)
        return UpcastAttention(attention) if self._served.upcasts else attention

    def _embeds(self, tokens: list[int], chunks: Sequence[Chunk], pictures: Pictures) -> Tensor:
        """Embeddings ``[1, tokens, hidden]`` with the rows of pictures among them."""
        embeds = self._served.decoder.get_input_embeddings()(torch.tensor([tokens], device=self._served.device))
        starts = accumulate((chunk.count for chunk in chunks), initial=0)
        for start, chunk in zip(starts, chunks, strict=False):
            for picture in pictures.get(chunk.sequence.id, ()):
                self._place(embeds[0, start : start + chunk.count], chunk, picture)
        return embeds

    def _place(self, own: Tensor, chunk: Chunk, picture: PromptPicture) -> None:
        """Write the rows of a picture that fall into a chunk over its embeddings ``[tokens, hidden]``."""
        assert self._pictures is not None  # a prompt with pictures is refused by a model that sees none
        inside = [row for row, place in enumerate(picture.places) if chunk.start <= place < chunk.end]
        if inside:
            (rows,) = self._pictures.of([picture])
            places = torch.tensor([picture.places[row] - chunk.start for row in inside], device=own.device)
            own[places] = rows[inside[0] : inside[-1] + 1].to(own)


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


def _as_first_read(chunk: Chunk) -> list[Chunk]:
    """The parts of a chunk that were computed in passes of their own the first time: the prompt, and each token."""
    drawn = range(max(chunk.start, len(chunk.sequence.prompt)), chunk.end)
    parts = [Chunk(chunk.sequence, place, 1) for place in drawn]
    if chunk.start < len(chunk.sequence.prompt):
        parts.insert(0, Chunk(chunk.sequence, chunk.start, min(chunk.end, len(chunk.sequence.prompt)) - chunk.start))
    parts[-1] = replace(parts[-1], draws=chunk.draws)
    return parts
