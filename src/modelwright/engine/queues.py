"""`Queues`, who waits and who runs; moving between the two is where a sequence gets and loses its pages."""

from modelwright.engine.blocks import BlockPool
from modelwright.engine.ranking import RankedList
from modelwright.engine.sequence import Sequence, Status


class Queues:
    """The two ranked lists. A sequence that waits holds no pages."""

    def __init__(self, pool: BlockPool):
        self.pool = pool
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

    def start(self, sequence: Sequence) -> None:
        """From waiting to running, with the pages whose content is there already."""
        self.waiting.remove(sequence)
        sequence.table = self.pool.acquire(self.reusable_names(sequence))
        sequence.computed = len(sequence.table) * self.pool.block_size
        sequence.status, sequence.publishes = Status.RUNNING, True
        self.running.add(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """From running to waiting: it loses its pages, and its tokens so far become its prompt."""
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.status = Status.PREEMPTED
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Out of either list, pages given back."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._give_back(sequence)

    def replace(self, sequence: Sequence, heir: Sequence) -> None:
        """Put `heir` in the place of an ended sequence, with its pages."""
        running = sequence in self.running
        queue = self.running if running else self.waiting
        queue.remove(sequence)
        heir.continue_from(sequence)
        heir.status = Status.RUNNING if running else Status.WAITING
        sequence.table, sequence.computed = [], 0
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

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.release(sequence.table)
        sequence.table, sequence.computed = [], 0
