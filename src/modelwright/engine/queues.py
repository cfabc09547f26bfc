"""`Queues`, who waits and who runs; moving between the two is where a sequence gets and loses its pages."""

from modelwright.engine.blocks import BlockPool
from modelwright.engine.host_pages import HostPages
from modelwright.engine.ranking import RankedList
from modelwright.engine.sequence import Sequence, Status
from modelwright.engine.step import Move


class Queues:
    """The two ranked lists. A sequence that waits holds no pages of `pool`, but may have some in host memory."""

    def __init__(self, pool: BlockPool, host: HostPages):
        self.pool, self.host = pool, host
        self.waiting = RankedList()
        self.running = RankedList()

    def reusable_names(self, sequence: Sequence) -> list[bytes]:
        """The names of the full pages that it may find instead of computing them."""
        size = self.pool.block_size
        return sequence.page_names(size, sequence.reusable // size) if self.pool.reuse else []

    def full_names(self, sequence: Sequence) -> list[bytes]:
        """The names under which its full pages are found once they are computed."""
        size = self.pool.block_size
        return sequence.page_names(size, len(sequence.tokens) // size) if self.pool.reuse else []

    def start(self, sequence: Sequence) -> list[Move]:
        """From waiting to running, with the pages whose content is there already, or is brought back by the moves."""
        self.waiting.remove(sequence)
        sequence.table = self.pool.acquire(self.reusable_names(sequence))
        sequence.borrowed = sequence.borrowed or bool(sequence.table)
        sequence.published = len(sequence.table)
        sequence.computed = len(sequence.table) * self.pool.block_size
        if sequence.status is Status.WAITING:
            sequence.found = sequence.computed
        moves = self._bring_back(sequence)
        sequence.status = Status.RUNNING
        self.running.add(sequence)
        return moves

    def preempt(self, sequence: Sequence, store: bool) -> list[Move]:
        """From running to waiting: it loses its pages, and its tokens so far become its prompt.

        With `store` the moves bring what it had computed to host memory, if there is room.
        """
        self.running.remove(sequence)
        moves = self.host.store(sequence) if store else []
        self._give_back(sequence)
        sequence.status = Status.PREEMPTED
        self.waiting.add(sequence)
        return moves

    def remove(self, sequence: Sequence) -> None:
        """Out of either list, pages given back."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._give_back(sequence)
        self.host.drop(sequence)

    def replace(self, sequence: Sequence, heir: Sequence) -> None:
        """Put `heir` in the place of an ended sequence, with its pages."""
        running = sequence in self.running
        queue = self.running if running else self.waiting
        queue.remove(sequence)
        heir.continue_from(sequence)
        heir.status = Status.RUNNING if running else Status.WAITING
        sequence.table, sequence.computed = [], 0
        sequence.stored, sequence.kept = [], 0
        queue.add(heir)

    def fork(self, sequence: Sequence, sibling: Sequence, max_running: int) -> None:
        """Let `sibling` run on the pages of `sequence`; beyond `max_running` it waits instead, without pages."""
        if len(self.running) < max_running:
            sibling.continue_from(sequence)
            sibling.status = Status.RUNNING
            self.pool.share(sibling.table)
            self.running.add(sibling)
        else:
            self.waiting.add(sibling)

    def _bring_back(self, sequence: Sequence) -> list[Move]:
        """Take pages for what waits in host memory behind the pages that were found, unless those reach as far.

        Who brings nothing back computes all of it by the weights of now, and so may publish it whatever was before.
        """
        if sequence.kept <= sequence.computed:
            self.host.drop(sequence)
            sequence.publishes = True
            return []
        pages = self.pool.take(self.pool.pages_for(sequence.kept) - len(sequence.table))
        assert pages is not None, "it was admitted without room for what it had computed"
        sequence.table += pages
        sequence.computed = sequence.kept
        return self.host.restore(sequence, pages)

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.release(sequence.table)
        sequence.table, sequence.computed = [], 0
