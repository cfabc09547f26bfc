"""The pool gives every page to one owner, shares only what is asked, and forgets the oldest first."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from modelwright.engine.blocks import BlockPool, Extension


def filled(pool: BlockPool, *names: bytes) -> list[int]:
    """A table of pages published under `names`."""
    pages = pool.take(len(names))
    assert pages is not None
    for page, name in zip(pages, names, strict=True):
        pool.publish(page, name)
    return pages


def test_pages_are_taken_and_given_back():
    pool = BlockPool(4, 16)
    pages = pool.take(3)
    assert pages is not None and len({*pages}) == 3
    assert (pool.available, pool.usage.used, pool.usage.free) == (1, 3, 1)
    pool.release(pages)
    assert (pool.available, pool.usage.used, pool.usage.cached, pool.usage.free) == (4, 0, 0, 4)


def test_a_lack_of_pages_is_an_answer_and_changes_nothing():
    pool = BlockPool(4, 16)
    pool.take(3)
    before = pool.usage
    assert pool.take(2) is None
    assert pool.extend([], 0, 33) is None
    assert pool.usage == before


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_pages_for_so_many_tokens(tokens, pages):
    assert BlockPool(4, 16).pages_for(tokens) == pages


def test_a_double_release_is_our_mistake():
    pool = BlockPool(4, 16)
    pages = pool.take(1)
    assert pages is not None
    pool.release(pages)
    with pytest.raises(AssertionError, match=f"page {pages[0]} is released more often than it was taken"):
        pool.release(pages)


@pytest.mark.parametrize("page", [-1, 4])
def test_a_foreign_page_is_our_mistake(page):
    pool = BlockPool(4, 16)
    for touch in (pool.references, lambda page: pool.share([page]), lambda page: pool.release([page])):
        with pytest.raises(AssertionError, match=f"page {page} is none of the pool's 4"):
            touch(page)


def test_a_blank_page_can_be_neither_shared_nor_published():
    pool = BlockPool(4, 16)
    with pytest.raises(AssertionError, match="page 0 holds nothing to share"):
        pool.share([0])
    with pytest.raises(AssertionError, match="page 0 is nobody's to publish"):
        pool.publish(0, b"name")


def test_a_page_has_one_name():
    pool = BlockPool(4, 16)
    [page] = filled(pool, b"a")
    with pytest.raises(AssertionError, match=f"page {page} has a name already"):
        pool.publish(page, b"b")


def test_published_pages_are_found_in_use_and_afterwards():
    pool = BlockPool(4, 16)
    table = filled(pool, b"a", b"b")
    assert pool.acquire([b"a", b"b", b"c"]) == table
    pool.release(table)
    pool.release(table)
    assert (pool.usage.used, pool.usage.cached) == (0, 2)
    assert pool.acquire([b"a"]) == table[:1]
    assert (pool.usage.used, pool.usage.cached, pool.references(table[0])) == (1, 1, 1)


def test_finding_stops_at_the_first_missing_page():
    pool = BlockPool(4, 16)
    table = filled(pool, b"a", b"c")
    assert pool.find([b"a", b"b", b"c"]) == table[:1]


def test_the_first_page_of_a_content_keeps_the_name():
    pool = BlockPool(4, 16)
    first, second = filled(pool, b"a"), filled(pool, b"a")
    pool.release(second)
    assert (pool.find([b"a"]), pool.usage.cached, pool.usage.free) == (first, 0, 3)


def test_the_hit_rate_counts_pages_sought():
    pool = BlockPool(4, 16)
    assert pool.usage.hit_rate == 0.0
    filled(pool, b"a", b"b")
    pool.acquire([b"a", b"b", b"c", b"d"])
    pool.find([b"a"])
    assert (pool.usage.pages_sought, pool.usage.pages_found, pool.usage.hit_rate) == (4, 2, 0.5)


def test_the_least_recently_released_goes_first_and_a_tables_end_before_its_beginning():
    pool = BlockPool(4, 16)
    old, new = filled(pool, b"a", b"b"), filled(pool, b"x", b"y")
    pool.release(old)
    pool.release(new)
    pool.take(1)
    assert [bool(pool.find([name])) for name in (b"a", b"b", b"x", b"y")] == [True, False, True, True]
    pool.release(pool.acquire([b"a"]))  # used again: now the most recent
    pool.take(1)
    assert [bool(pool.find([name])) for name in (b"a", b"x", b"y")] == [True, True, False]


def test_blank_pages_are_taken_before_anything_is_evicted():
    pool = BlockPool(3, 16)
    pool.release(filled(pool, b"a"))
    pool.take(2)
    assert pool.find([b"a"]) and pool.usage.free == 0


def test_a_reset_forgets_all_content_and_leaves_pages_to_their_owners():
    pool = BlockPool(4, 16)
    kept = filled(pool, b"a")
    pool.release(filled(pool, b"b"))
    pool.forget()
    assert (pool.find([b"a"]), pool.find([b"b"])) == ([], [])
    assert (pool.usage.used, pool.usage.cached, pool.usage.free) == (1, 0, 3)
    pool.release(kept)
    assert pool.usage.free == 4


def test_without_reuse_nothing_is_found():
    pool = BlockPool(4, 16, reuse=False)
    pool.release(filled(pool, b"a"))
    assert (pool.find([b"a"]), pool.usage.free) == ([], 4)


def test_a_table_grows_by_what_its_tokens_need():
    pool = BlockPool(4, 4)
    grown = pool.extend([], 0, 5)
    assert grown is not None and len(grown.pages) == 2 and grown.copy is None
    assert pool.extend(grown.pages, 5, 8) == Extension()
    more = pool.extend(grown.pages, 8, 9)
    assert more is not None and len(more.pages) == 1


def test_a_partly_filled_page_is_copied_for_all_writers_but_the_last():
    pool = BlockPool(4, 4)
    table = pool.take(2)
    assert table is not None
    pool.share(table)
    first = pool.extend(table, 5, 6)
    assert first is not None and first.copy is not None and first.pages == ()
    assert first.copy[0] == table[1] and first.copy[1] not in table
    assert [pool.references(page) for page in (*table, first.copy[1])] == [2, 1, 1]
    assert pool.extend(table, 5, 6) == Extension()


def test_a_copy_without_a_page_for_it_is_refused_and_nothing_changes():
    pool = BlockPool(2, 4)
    table = pool.take(2)
    assert table is not None
    pool.share(table)
    assert pool.extend(table, 5, 6) is None
    assert [pool.references(page) for page in table] == [2, 2]


def test_a_full_shared_page_is_not_copied():
    pool = BlockPool(4, 4)
    table = pool.take(1)
    assert table is not None
    pool.share(table)
    grown = pool.extend(table, 4, 5)
    assert grown is not None and grown.copy is None and len(grown.pages) == 1


class PoolMachine(RuleBasedStateMachine):
    """Random owners against a list of who holds what and a list of what was released when."""

    tables = Bundle("tables")

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(6, 4)
        self.held: list[list[int]] = []
        self.names: dict[bytes, int] = {}  # what can be found
        self.idle: list[bytes] = []  # of it, what nobody holds, the oldest first

    @rule(target=tables, count=st.integers(1, 3))
    def take(self, count):
        used = len({page for table in self.held for page in table})
        pages = self.pool.take(count)
        assert (pages is None) == (count > 6 - used)
        if pages is None:
            return multiple()
        for _ in range(max(0, count - (6 - used - len(self.idle)))):
            del self.names[self.idle.pop(0)]
        assert not {*pages} & {page for table in self.held for page in table}
        self.held.append(pages)
        return pages

    @rule(table=tables, name=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def publish(self, table, name):
        if table[0] in self.names.values():
            return
        self.pool.publish(table[0], name)
        self.names.setdefault(name, table[0])

    @rule(target=tables, wanted=st.permutations([b"a", b"b", b"c"]))
    def acquire(self, wanted):
        known = [name in self.names for name in wanted]
        leading = wanted[: known.index(False)] if False in known else wanted
        pages = self.pool.acquire(wanted)
        assert pages == [self.names[name] for name in leading]
        self.idle = [name for name in self.idle if name not in leading]
        if not pages:
            return multiple()
        self.held.append(pages)
        return pages

    @rule(table=consumes(tables))
    def release(self, table):
        self.held.remove(table)
        self.pool.release(table)
        still = {page for held in self.held for page in held}
        by_page = {page: name for name, page in self.names.items()}
        self.idle += [by_page[page] for page in reversed(table) if page in by_page and page not in still]

    @rule()
    def forget(self):
        self.pool.forget()
        self.names, self.idle = {}, []

    @invariant()
    def the_books_agree(self):
        held = [page for table in self.held for page in table]
        usage = self.pool.usage
        assert [self.pool.references(page) for page in range(6)] == [held.count(page) for page in range(6)]
        assert (usage.used, usage.cached, usage.free) == (
            len({*held}),
            len(self.idle),
            6 - len({*held}) - len(self.idle),
        )
        found = {name: self.pool.find([name]) for name in (b"a", b"b", b"c", b"d")}
        assert found == {name: [self.names[name]] if name in self.names else [] for name in found}


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
