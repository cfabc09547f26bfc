"""`DecodeGraphs`, decode passes captured once for each size of batch and replayed: a GPU then waits for no Python.

A captured pass reads and writes the same memory each time, so its inputs are tensors that are filled anew, and a batch
is padded to a size there is a graph of. The rows that pad it write to a page that is nobody's. Leaves out prompts and
pictures, whose passes differ in length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from modelwright.attention import PagedAttention, PagedBatch, PagePool
from modelwright.attention.upcast import UpcastAttention
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.model_pass import ModelPass
from modelwright.engine.served_model import ServedModel
from modelwright.errors import ConfigError

BACKEND = "cudagraph"
SCRATCH_PAGES = 1
"""The last page of a pool, where padding writes."""
_FEW = 16
"""Up to so many rows graphs are twice as large each, then so many rows larger."""
_WARM_UPS = 2

Forward = Callable[[], Tensor]


class Capture(Protocol):
    """Makes a pass that computes the same as ``forward`` from the same tensors, into the same result each time."""

    def __call__(self, forward: Forward) -> Forward: ...


class CudaCapture:
    """By CUDA graphs that share their memory; one of them runs at a time, and a result holds until the next."""

    def __init__(self, device: torch.device):
        self._device, self._memory = device, torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward) -> Forward:
        """Run it aside first, so that kernels are compiled and workspaces taken, then record it.

        Raises:
            ConfigError: it asks the device for a number or does something else that a graph cannot.
        """
        with torch.cuda.device(self._device):
            current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    forward()
            current.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._memory):
                    result = forward()
            except RuntimeError as error:
                raise ConfigError(f'backend "{BACKEND}" cannot capture the passes of this model: {error}') from error

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


@dataclass(frozen=True)
class DecodeInputs:
    """What a captured pass reads: ``[1, batch]`` tokens and positions, and where the batch's tokens stand in the pools.

    A row that pads is token 0 of a sequence of one, in the scratch page.
    """

    tokens: Tensor
    positions: Tensor
    batch: PagedBatch
    page_size: int
    scratch: int

    @classmethod
    def of(cls, batch: int, pages: int, page_size: int, scratch: int, device: torch.device) -> Self:
        """Padding only, with room for so many pages of each sequence."""
        alone = PagedBatch.of([1] * batch, [1] * batch, [[scratch]] * batch, page_size, device)
        wide = replace(alone, tables=alone.tables.repeat(1, pages))
        tokens, positions = torch.zeros(2, 1, batch, dtype=torch.int64, device=device)
        return cls(tokens, positions, wide, page_size, scratch)

    def fill(self, one: ModelPass) -> None:
        """Take the tokens of a pass, one of each sequence, and pad the rest."""
        batch, spare = self.tokens.shape[1], self.tokens.shape[1] - len(one.tokens)
        tables = [*one.tables, *[[self.scratch]] * spare]
        given = PagedBatch.of([1] * batch, one.ends + [1] * spare, tables, self.page_size)
        self.tokens.copy_(torch.tensor([one.tokens + [0] * spare]))
        self.positions.copy_(torch.tensor([one.positions + [0] * spare]))
        self.batch.contexts.copy_(given.contexts)
        self.batch.tables[:, : given.tables.shape[1]].copy_(given.tables)
        self.batch.slots.copy_(given.slots)


class DecodeGraphs:
    """The passes of one model over its pools, each captured when its size of batch is first met.

    Args:
        served: the model.
        pools: one for each layer, with `spare_pages` at their ends.
        context: how many tokens a sequence may have.
        capture: by default as CUDA graphs on the model's device.
    """

    def __init__(self, served: ServedModel, pools: Sequence[PagePool], context: int, capture: Capture | None = None):
        self._served, self._pools, self._context = served, pools, context
        self._capture = capture or CudaCapture(served.device)
        self._captured: dict[int, tuple[DecodeInputs, Forward]] = {}

    @staticmethod
    def serves(one: ModelPass) -> bool:
        """Whether it is a decode: one token of each sequence, all of which get logits, and no rows of pictures."""
        return one.embeds is None and len(one.tokens) == len(one.tables) and one.places == list(range(len(one.tokens)))

    def logits(self, one: ModelPass) -> Tensor:
        """``[sequences, vocabulary]`` of a decode, to be read before the next."""
        batch = padded_batch(len(one.tokens))
        if batch not in self._captured:
            self._captured[batch] = self._new(batch)
        inputs, replay = self._captured[batch]
        inputs.fill(one)
        return replay()[: len(one.tokens)]

    def _new(self, batch: int) -> tuple[DecodeInputs, Forward]:
        served, size = self._served, self._pools[0].page_size
        scratch = len(self._pools[0].keys.rows) - SCRATCH_PAGES
        inputs = DecodeInputs.of(batch, -(-self._context // size), size, scratch, served.device)
        table = served.decoder.get_input_embeddings()

        def forward() -> Tensor:
            attention = PagedAttention(self._pools, inputs.batch)
            return served.decoder(
                inputs_embeds=table(inputs.tokens),  # a decoder given token ids may look at what they are
                position_ids=inputs.positions,
                attention=UpcastAttention(attention) if served.upcasts else attention,
                use_cache=False,
            ).logits[0]

        return inputs, self._capture(forward)


def padded_batch(sequences: int) -> int:
    """How many rows the graph has that serves so many: the next power of two, beyond 16 the next multiple of 16."""
    if sequences > _FEW:
        return -(-sequences // _FEW) * _FEW
    return 1 << (sequences - 1).bit_length()


def spare_pages(served: ServedModel, settings: EngineConfig) -> int:
    """How many pages the pools need at their ends that no sequence gets: some for graphs, otherwise none.

    Raises:
        ConfigError: `settings` ask for graphs, and the model is on no CUDA device or several ranks share it.
    """
    if settings.backend != BACKEND:
        return 0
    if served.device.type != "cuda":
        raise ConfigError(f'backend "{BACKEND}" needs a model on a CUDA device, got one on "{served.device.type}"')
    if served.ranks > 1:
        raise ConfigError(f'backend "{BACKEND}" serves a model on one rank, got {served.ranks} ranks')
    return SCRATCH_PAGES
