"""The table of docs/server.md: what each probe says in each state, and when an engine stands still."""

import pytest

from modelwright.server.health import Condition, Health
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError
from tests.server.echo import echo
from tests.server.live import FakeEngine, serving


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(state: Condition, **engine) -> tuple[Health, Clock]:
    clock = Clock()
    health = Health(ServerSettings(), clock, state)
    if state is not Condition.LOADING:
        health.engine = FakeEngine(last_step=clock.now, **engine)
    return health, clock


TABLE = [
    # state, engine, seconds since the last step, livez, readyz, health, code of a new request
    (Condition.LOADING, {}, 0, 200, 503, 503, "loading"),
    (Condition.SERVING, {}, 0, 200, 200, 200, None),
    (Condition.SERVING, {"has_work": True}, 119, 200, 200, 200, None),
    (Condition.DRAINING, {}, 0, 200, 503, 200, None),
    (Condition.CLOSING, {}, 0, 200, 503, 200, "shutting_down"),
    (Condition.SERVING, {"has_work": True}, 121, 503, 503, 503, "engine_stalled"),
    (Condition.SERVING, {"has_work": True, "longest_step": 10.0}, 199, 200, 200, 200, None),
    (Condition.SERVING, {"has_work": True, "longest_step": 10.0}, 201, 503, 503, 503, "engine_stalled"),
    (Condition.CLOSING, {"has_work": True}, 121, 503, 503, 503, "engine_stalled"),
    (Condition.SERVING, {"alive": False}, 0, 503, 503, 503, "engine_stalled"),
    (Condition.SERVING, {}, 100_000, 200, 200, 200, None),
]


@pytest.mark.parametrize(("state", "engine", "age", "live", "ready", "well", "code"), TABLE)
def test_the_table_of_states(state, engine, age, live, ready, well, code):
    health, clock = made(state, **engine)
    clock.now += age
    assert [health.probe(path)[0] for path in ("/livez", "/readyz", "/health")] == [live, ready, well]
    if code is None:
        health.require()
    else:
        with pytest.raises(ApiError) as caught:
            health.require()
        assert (caught.value.status, caught.value.code) == (503, code) and int(caught.value.headers["retry-after"]) > 0


def test_work_after_a_long_rest_is_no_stall():
    health, clock = made(Condition.SERVING)
    clock.now += 10_000
    health.beat()
    health.engine.has_work = True
    clock.now += 60
    health.beat()
    assert health.check() is Condition.SERVING and health.stalled_for() == 60
    clock.now += 61
    assert health.check() is Condition.STALLED
    health.engine.last_step = clock.now
    assert health.check() is Condition.SERVING


def test_a_full_queue_is_well():
    with serving(echo(), engine=FakeEngine(last_step=1e12, has_work=True, running=64, waiting=256)) as live:
        assert [live.ask(path).status for path in ("/livez", "/readyz", "/health")] == [200, 200, 200]


def test_a_stalled_engine_is_told_and_gets_nothing_new():
    with serving(echo(), engine=FakeEngine(has_work=True), stall_seconds=1e-6) as live:
        assert [live.ask(path).code for path in ("/livez", "/readyz", "/health")] == ["engine_stalled"] * 3
        refused = live.ask("/v1/x", "POST", {})
        assert (refused.status, refused.code) == (503, "engine_stalled")
        assert live.ask("/metrics").status == 200
