"""`BlockPool`, which page belongs to whom and which content can be found again; it holds numbers, no tensors.

A page (a block of `block_size` tokens) is in use while anybody refers to it. Afterwards it is blank, or, if its content
was published under a name, it stays findable until its memory is needed: the least recently released goes first.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PoolUsage:
    """Pages by what they are: referred to, only findable, or blank; and how often looking for full pages succeeded."""

    used: int
    cached: int
    free: int
    pages_sought: int
    pages_found: int

    @property
    def hit_rate(self) -> float:
        """Found pages among those sought; 0 before any was."""
        return self.pages_found / self.pages_sought if self.pages_sought else 0.0


@dataclass(frozen=True)
class Extension:
    """What a table needs before tokens are written: pages to append, and a page to copy and put in the other's place.

    `copy` is ``(source, target)``: the source is a partly filled page that others refer to as well.
    """

    pages: tuple[int, ...] = ()
    copy: tuple[int, int] | None = None


_NOTHING = Extension()


class BlockPool:
    """References, blank pages and the prefix cache of `num_blocks` pages of `block_size` tokens.

    With `reuse` off nothing is found again. A page that is released twice, or that is not of this pool, is a mistake of
    ours and fails an assertion; a lack of pages is an answer, `None`.
    """

    def __init__(self, num_blocks: int, block_size: int, reuse: bool = True):
        assert num_blocks > 0 and block_size > 0
        self.num_blocks, self.block_size, self.reuse = num_blocks, block_size, reuse
        self._references = [0] * num_blocks
        self._name: list[bytes | None] = [None] * num_blocks
        self._page: dict[bytes, int] = {}
        self._blank = list(reversed(range(num_blocks)))
        self._cached: OrderedDict[int, None] = OrderedDict()  # pages nobody refers to; first to be evicted first
        self._sought = self._found = 0

    @property
    def available(self) -> int:
        """Pages that `take` could hand out: the blank, and the findable that nobody refers to."""
        return len(self._blank) + len(self._cached)

    @property
    def usage(self) -> PoolUsage:
        """The pool at this moment; what was sought and found counts from the beginning."""
        used = self.num_blocks - self.available
        return PoolUsage(used, len(self._cached), len(self._blank), self._sought, self._found)

    def pages_for(self, tokens: int) -> int:
        """How many pages hold so many tokens."""
        return -(-tokens // self.block_size)

    def references(self, page: int) -> int:
        """How many tables the page stands in."""
        self._check(page)
        return self._references[page]

    def take(self, count: int) -> list[int] | None:
        """`count` pages of undefined content with one reference each, evicting what must be; None if they lack."""
        if count > self.available:
            return None
        pages = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """One more reference to each page, all of them in use or findable."""
        for page in pages:
            self._check(page)
            if self._references[page] == 0:
                assert page in self._cached, f"page {page} holds nothing to share"
                del self._cached[page]
            self._references[page] += 1

    def release(self, table: Sequence[int]) -> None:
        """One reference less to each page of a table, from its end: the pages that begin a prompt are kept longest."""
        for page in reversed(table):
            self._check(page)
            assert self._references[page] > 0, f"page {page} is released more often than it was taken"
            self._references[page] -= 1
            if self._references[page] == 0:
                self._retire(page)

    def extend(self, table: Sequence[int], start: int, end: int) -> Extension | None:
        """Pages for writing tokens `start` to `end` (exclusive) of `table`, held by it alone; None if they lack.

        The new pages have their reference, and a copied page has lost this table's. Copies are done in order, before
        anything is written.
        """
        first = start // self.block_size
        shared = first < len(table) and self._references[table[first]] > 1
        missing = max(0, self.pages_for(end) - len(table))
        if not shared and not missing:
            return _NOTHING
        pages = self.take(missing + shared)
        if pages is None:
            return None
        if not shared:
            return Extension(tuple(pages))
        self.release(table[first : first + 1])
        return Extension(tuple(pages[1:]), (table[first], pages[0]))

    def publish(self, page: int, name: bytes) -> None:
        """Let a full page be found under the name of its content, unless another page already is."""
        assert self.references(page) > 0, f"page {page} is nobody's to publish"
        assert self._name[page] is None, f"page {page} has a name already"
        if self.reuse and name not in self._page:
            self._page[name] = page
            self._name[page] = name

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The pages under the leading `names`, up to the first that is missing; takes no reference."""
        pages = []
        for name in names:
            page = self._page.get(name)
            if page is None:
                break
            pages.append(page)
        return pages

    def acquire(self, names: Sequence[bytes]) -> list[int]:
        """`find`, with a reference to each page; counts in `usage`."""
        pages = self.find(names)
        self.share(pages)
        self._sought += len(names)
        self._found += len(pages)
        return pages

    def unpublish(self, pages: Iterable[int]) -> None:
        """Let none of these pages be found again; those in use stay in use."""
        for page in pages:
            self._check(page)
            name, self._name[page] = self._name[page], None
            if name is not None:
                del self._page[name]
            if page in self._cached:
                del self._cached[page]
                self._blank.append(page)

    def forget(self) -> None:
        """Reset the prefix cache: nothing published so far is found again; pages in use stay in use."""
        self._blank.extend(self._cached)
        self._cached.clear()
        self._page.clear()
        self._name = [None] * self.num_blocks

    def _check(self, page: int) -> None:
        assert 0 <= page < self.num_blocks, f"page {page} is none of the pool's {self.num_blocks}"

    def _retire(self, page: int) -> None:
        if self._name[page] is None:
            self._blank.append(page)
        else:
            self._cached[page] = None

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        name, self._name[page] = self._name[page], None
        assert name is not None
        del self._page[name]
        return page
