"""`DecodeGraphs`, decode passes captured once for each size of batch and replayed without the model's Python.

A captured pass reads and writes the same memory each time, so its inputs are tensors that are filled anew. On a GPU it
is a CUDA graph, and a batch is padded to a size there is a graph of; the rows that pad it write to a page that is
nobody's. On a CPU it is a tape of the kernels' calls, for each size its own. Leaves out prompts and pictures, whose
passes differ in length.
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
from modelwright.engine.model_state import ModelState
from modelwright.engine.served_model import ServedModel
from modelwright.errors import ConfigError
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.record import Memory, NotRecordable, record

CAPTURES = {"cudagraph": "cuda", "record": "cpu"}
"""The backends that capture, and the devices whose passes they do."""
SCRATCH_PAGES = 1
"""The last page of a pool, where padding writes."""
_FEW = 16
"""Up to so many rows graphs are twice as large each, then so many rows larger."""
_WARM_UPS = 2

Forward = Callable[[], Tensor]


class Capture(Protocol):
    """Makes a pass that computes the same as ``forward`` from the same tensors, into the same result each time.

    Attributes:
        pads: whether a batch is padded to one of few sizes.
    """

    pads: bool

    def __call__(self, forward: Forward) -> Forward:
        """Run ``forward`` once or more, and return its replay.

        Raises:
            ConfigError: it asks for a number or does something else that cannot be captured.
        """
        ...


class TapeCapture:
    """By tapes of the CPU's kernels that share their memory; a result holds until the next of them runs."""

    pads = False

    def __init__(self) -> None:
        self._memory = Memory()

    def __call__(self, forward: Forward) -> Forward:
        """See :class:`Capture`."""
        try:
            return record(forward, self._memory)
        except NotRecordable as error:
            raise ConfigError(f'backend "record" cannot record the passes of this model: {error}') from error


class CudaCapture:
    """By CUDA graphs that share their memory; one of them runs at a time, and a result holds until the next."""

    pads = True

    def __init__(self, device: torch.device):
        self._device, self._memory = device, torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward) -> Forward:
        """See :class:`Capture`; runs it aside first, so that kernels are compiled and workspaces taken."""
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
                raise ConfigError(f'backend "cudagraph" cannot capture the passes of this model: {error}') from error

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

    They are captured anew when anything has changed that a pass depends on (`ModelState`). A weight that changes where
    it lies is read as it then is. While the model is not as it was built, having hooks, adapters or methods of somebody
    else's, its modules are to be called, and nothing is captured.

    Args:
        served: the model.
        pools: one for each layer, with `spare_pages` at their ends.
        context: how many tokens a sequence may have.
        capture: how.
        optional: whether a model whose passes cannot be captured is served otherwise.
        state: of the served decoder, where somebody else looks at it before each pass.
    """

    def __init__(
        self,
        served: ServedModel,
        pools: Sequence[PagePool],
        context: int,
        capture: Capture,
        optional: bool = False,
        state: ModelState | None = None,
    ):
        self._served, self._pools, self._context = served, pools, context
        self._capture, self._optional = capture, optional
        self._captured: dict[int, tuple[DecodeInputs, Forward]] = {}
        self._refused = False
        self._looks, self._state = state is None, state or ModelState(served.decoder)
        self._version = self._state.version

    def logits(self, one: ModelPass) -> Tensor | None:
        """``[sequences, vocabulary]`` of a decode; None for a pass that is to be computed by calling the model.

        Raises:
            ConfigError: the model's passes cannot be captured, and it is not optional.
        """
        if not is_decode(one):
            return None
        if self._looks:
            self._state.look(contents=False)
        if self._state.version != self._version:
            self._version, self._refused = self._state.version, False
            self._captured.clear()
        if self._refused or not self._state.records:
            return None
        rows = len(one.tokens)
        batch = padded_batch(rows) if self._capture.pads else rows
        if batch in self._captured:
            inputs, replay = self._captured[batch]
            inputs.fill(one)
        else:
            inputs = self._inputs(batch)
            inputs.fill(one)
            replay = self._first(inputs)
        return None if replay is None else replay()[:rows].clone()

    def _first(self, inputs: DecodeInputs) -> Forward | None:
        """Capture a size of batch with its first tokens; None, for the model as it is, where that cannot be done."""
        try:
            replay = self._capture(lambda: self._forward(inputs))
        except ConfigError:
            if not self._optional:
                raise
            self._refused = True
            return None
        self._captured[inputs.tokens.shape[1]] = inputs, replay
        return replay

    def _inputs(self, batch: int) -> DecodeInputs:
        size = self._pools[0].page_size
        scratch = len(self._pools[0].keys.rows) - SCRATCH_PAGES
        return DecodeInputs.of(batch, -(-self._context // size), size, scratch, self._served.device)

    def _forward(self, inputs: DecodeInputs) -> Tensor:
        served = self._served
        attention = PagedAttention(self._pools, inputs.batch)
        return served.decoder(
            inputs_embeds=served.decoder.get_input_embeddings()(inputs.tokens),  # given ids it may look at them
            position_ids=inputs.positions,
            attention=UpcastAttention(attention) if served.upcasts else attention,
            use_cache=False,
        ).logits[0]


def graphs_of(
    served: ServedModel,
    settings: EngineConfig,
    pools: Sequence[PagePool],
    context: int,
    state: ModelState | None = None,
) -> DecodeGraphs | None:
    """The graphs that `settings` ask for, if any: with backend ``auto`` tapes, where there are kernels to record."""
    if settings.backend == "cudagraph":
        return DecodeGraphs(served, pools, context, CudaCapture(served.device), state=state)
    if settings.backend == "record":
        return DecodeGraphs(served, pools, context, TapeCapture(), state=state)
    tapes = served.device.type == "cpu" and served.ranks == 1 and kernels.available()
    if settings.backend == "auto" and tapes:
        return DecodeGraphs(served, pools, context, TapeCapture(), optional=True, state=state)
    return None


def is_decode(one: ModelPass) -> bool:
    """Whether a pass has one token of each sequence, all of which get logits, and no rows of pictures."""
    return one.embeds is None and len(one.tokens) == len(one.tables) and one.places == list(range(len(one.tokens)))


def padded_batch(sequences: int) -> int:
    """How many rows the graph has that serves so many: the next power of two, beyond 16 the next multiple of 16."""
    if sequences > _FEW:
        return -(-sequences // _FEW) * _FEW
    return 1 << (sequences - 1).bit_length()


def spare_pages(served: ServedModel, settings: EngineConfig) -> int:
    """How many pages the pools need at their ends that no sequence gets: some for CUDA graphs, otherwise none.

    Raises:
        ConfigError: `settings` ask for captured passes that the model's device does not have, or of a model that
            several ranks share, or for a record of kernels where there are none.
    """
    backend, device = settings.backend, served.device.type
    if backend in CAPTURES and device != CAPTURES[backend]:
        raise ConfigError(f'backend "{backend}" needs a model on a {CAPTURES[backend]} device, got one on "{device}"')
    if backend in CAPTURES and served.ranks > 1:
        raise ConfigError(f'backend "{backend}" serves a model on one rank, got {served.ranks} ranks')
    if backend == "record" and not kernels.available():
        raise ConfigError(f'backend "record" records compiled kernels, and there are none: {kernels.reason()}')
    return SCRATCH_PAGES if backend == "cudagraph" else 0
