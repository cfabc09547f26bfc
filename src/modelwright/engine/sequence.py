"""`Sequence`, one sample of a request on its way from prompt to last token; no tensors, and it decides nothing."""

from dataclasses import dataclass, field
from enum import StrEnum

from modelwright.engine.prefix import Key, page_name, root_name


class Status(StrEnum):
    """Where a sequence stands; the last two are final."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"
    ABORTED = "aborted"


@dataclass(eq=False)
class Sequence:
    """A prompt, the tokens drawn after it, and the pages that hold their keys and values.

    The scheduler writes everything below `prompt_logprobs`; others read it.

    Attributes:
        id: names the sequence among all that are served.
        prompt: token ids, placeholders of pictures included.
        max_tokens: how many tokens are drawn at most.
        keys: the content of each prompt position, by which pages are found again; the ids themselves where it is empty.
        salt: tells the weights (a model, an adapter) or a tenant apart: pages are found only under the same salt.
        priority: lower goes first.
        prompt_logprobs: logits of every prompt position are wanted, so that the prompt is computed and never found.
        tokens: the prompt and what was drawn.
        computed: how many leading tokens have their keys and values in pages.
        table: the pages, in order; page ``i`` holds the tokens from ``i * block_size`` on.
        published: how many leading pages others may find already, or were found themselves.
        stored: while it waits, pages of host memory that hold what it had computed, in order; mostly none.
        kept: how many leading tokens those hold.
        arrival: counts the sequences as they were added.
        rank: lower is served first and preempted last.
        siblings: samples that wait for this sequence to read their common prompt; `leader` is the way back.
        publishes: whether pages it fills may be found by others.
        borrowed: whether it found pages that others filled.
        alone: whether it finds none and lets none be found, since what it found before was damaged.
        found: how many leading tokens it found when it first ran.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    keys: tuple[Key, ...] = ()
    salt: str = ""
    priority: int = 0
    prompt_logprobs: bool = False
    tokens: list[int] = field(init=False)
    computed: int = field(init=False, default=0)
    table: list[int] = field(init=False, default_factory=list)
    published: int = field(init=False, default=0)
    stored: list[int] = field(init=False, default_factory=list)
    kept: int = field(init=False, default=0)
    status: Status = field(init=False, default=Status.WAITING)
    finish_reason: str | None = field(init=False, default=None)
    arrival: int = field(init=False, default=0)
    rank: tuple[int, int] = field(init=False, default=(0, 0))
    siblings: list["Sequence"] = field(init=False, default_factory=list, repr=False)
    leader: "Sequence | None" = field(init=False, default=None, repr=False)
    publishes: bool = field(init=False, default=True)
    borrowed: bool = field(init=False, default=False)
    alone: bool = field(init=False, default=False)
    found: int = field(init=False, default=0)
    _names: list[bytes] = field(init=False, default_factory=list, repr=False)

    def __post_init__(self) -> None:
        assert not self.keys or len(self.keys) == len(self.prompt), "one key for each token of the prompt"
        self.tokens = list(self.prompt)

    @property
    def generated(self) -> list[int]:
        """The tokens drawn so far."""
        return self.tokens[len(self.prompt) :]

    @property
    def remaining(self) -> int:
        """How many tokens are yet to be computed before the next one can be drawn."""
        return len(self.tokens) - self.computed

    @property
    def limit(self) -> int:
        """How many tokens it has at most, the prompt included."""
        return len(self.prompt) + self.max_tokens

    @property
    def ended(self) -> bool:
        """Whether its status is final."""
        return self.status in (Status.FINISHED, Status.ABORTED)

    @property
    def reusable(self) -> int:
        """How many leading tokens may be found instead of computed.

        The last one never, because its logits are needed. None while the prompt's own logits are: that is until the
        first token is drawn.
        """
        if self.alone:
            return 0
        needs_prompt = self.prompt_logprobs and len(self.tokens) == len(self.prompt)
        return 0 if needs_prompt else len(self.tokens) - 1

    def page_names(self, block_size: int, count: int) -> list[bytes]:
        """The content names of its first `count` pages, all of them full; each is computed once."""
        for index in range(len(self._names), count):
            before = self._names[-1] if self._names else root_name(self.salt)
            self._names.append(page_name(before, self._keys(index * block_size, (index + 1) * block_size)))
        return self._names[:count]

    def _keys(self, start: int, end: int) -> list[Key]:
        prompt = self.keys or self.prompt
        return [*prompt[start:end], *self.tokens[max(start, len(prompt)) : end]]

    def continue_from(self, other: "Sequence") -> None:
        """Stand where `other` stands in their common prompt; the references to the pages are the caller's to count."""
        self.table, self.computed = list(other.table), other.computed
        self.stored, self.kept = list(other.stored), other.kept
        self.published, self.publishes, self._names = other.published, other.publishes, list(other._names)
        self.borrowed, self.alone = other.borrowed, other.alone
