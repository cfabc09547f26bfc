"""Engines that share a model, as threads: the tokens and logits of one rank, whatever the scheduler makes of them."""

import copy
import multiprocessing
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams
from modelwright.engine.results import Result
from modelwright.engine.served_model import ServedModel
from modelwright.errors import ConfigError
from modelwright.ops.pages import Pages
from modelwright.parallel import Mesh, RankLost, process_group
from modelwright.parallel import mesh as mesh_module
from tests.engine.engines import Recorded, check_idle, engine_of, greedy, record, tokens_of
from tests.fakes import MHA, MOE, tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.llamas import HUGGING_FACE, ROPES, tiny_llama
from tests.parallel.models import build
from tests.parallel.threads import in_ranks

WITHIN = 1e-5
LIMITS: dict[str, Any] = {"max_batch": 4, "token_budget": 16, "page_size": 4, "num_pages": 64}
TIGHT: dict[str, Any] = {"num_pages": 12, "host_pages": 12}
PROMPTS = [tokens(length, vocab=16, seed=length).tolist() for length in (3, 11, 23)]


def serve(engine: Engine, prompts: Any, params: Any) -> tuple[list[Result], Recorded]:
    recorded = record(engine)
    return engine.generate(prompts, params), recorded


def shared(model: Any, size: int, work: Callable[[Engine], Any], **settings: Any) -> Any:
    """What `work` makes of an engine whose model `size` ranks share."""

    def of(mesh: Mesh) -> Any:
        engine = Engine(copy.deepcopy(model), EngineConfig(**LIMITS | settings), mesh=mesh)
        if not mesh.leads:
            return engine.follow()
        try:
            return work(engine)
        finally:
            engine.close()

    return in_ranks(size, of)[0]


def check_shared(model: Any, prompts: Any, size: int = 2, params: Any = None, **settings: Any) -> None:
    """The same tokens from the same logits as by one rank."""
    params = params or greedy(6)
    wanted, alone = serve(engine_of(model, **settings), prompts, params)
    found, recorded = shared(model, size, lambda engine: serve(engine, prompts, params), **settings)
    assert tokens_of(found) == tokens_of(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        rows, others = recorded.drawn[mine.request], alone.drawn[theirs.request]
        assert rows.keys() == others.keys()
        for place, row in rows.items():
            torch.testing.assert_close(row, others[place], atol=WITHIN, rtol=0)


@pytest.mark.parametrize(
    "name",
    ["latent, experts", "grouped queries, merged", "MindFormers, merged", "MindFormers, experts", "ImageGPT", "int8"],
)
def test_a_family_says_the_same(name):
    check_shared(build(name), [prompt[:14] for prompt in PROMPTS], host_pages=0)


def test_more_ranks_than_key_heads():
    check_shared(tiny_llama(base=HUGGING_FACE), PROMPTS, size=4)


@pytest.mark.parametrize("base", [MOE, MHA], ids=["latent", "grouped"])
def test_pages_move_in_every_rank(base):
    """Few pages: sequences are preempted, come back from the host or are computed again, and samples share a prompt."""
    params = [greedy(9), SamplingParams(max_tokens=7, n=3, seed=3, ignore_eos=True), greedy(9)]
    check_shared(tiny_v2(base=base), PROMPTS, params=params, **TIGHT)


def test_pages_of_integers_lose_what_they_lose_with_one_rank():
    check_shared(tiny_llama(base=HUGGING_FACE), PROMPTS, kv_dtype="int8")


def test_prompts_that_rotate_by_their_own_length_take_several_passes():
    model = tiny_llama(base=HUGGING_FACE, rope_scaling=ROPES["dynamic"], max_position_embeddings=8)
    check_shared(model, [PROMPTS[0], PROMPTS[1][:7]], params=greedy(5))


def test_pictures_reach_every_rank():
    model, inputs = tiny_vl2(), vl2_inputs([[(1, 1)], [(2, 1), (1, 1)]])
    prompts = [{name: part[i : i + 1] for name, part in inputs.items()} for i in range(2)]
    check_shared(model, prompts)


def test_prompts_have_the_same_log_probabilities():
    params = greedy(2, prompt_logprobs=2)
    (wanted,) = engine_of(build("Llama")).generate([PROMPTS[1]], params)
    (found,) = shared(build("Llama"), 2, lambda engine: engine.generate([PROMPTS[1]], params))
    for mine, theirs in zip(found.prompt_logprobs[1:], wanted.prompt_logprobs[1:], strict=True):
        assert mine.token == theirs.token and mine.logprob == pytest.approx(theirs.logprob, abs=WITHIN)


def test_requests_come_and_go_while_others_run():
    def work(engine: Engine) -> list[Any]:
        engine.add_request(PROMPTS[2], greedy(20), id="gone")
        engine.step()
        engine.add_request(PROMPTS[1], greedy(4), id="kept")
        said = [update for _ in range(2) for update in engine.step()]
        engine.abort("gone")
        while engine.has_work:
            said += engine.step()
        check_idle(engine)
        return [token for update in said if update.request == "kept" for token in update.tokens]

    model = build("latent, dense")
    assert shared(model, 2, work) == work(engine_of(model))


def test_each_rank_keeps_the_keys_of_its_heads():
    def shapes(name: str, size: int) -> Any:
        model = build(name)

        def of(mesh: Mesh) -> list[Pages]:
            engine = Engine(copy.deepcopy(model), EngineConfig(**LIMITS), mesh=mesh)
            return [pool.keys.rows.shape[2:] for pool in engine._runner._pools]

        return in_ranks(size, of)

    assert shapes("Llama", 2) == [[(1, 8)] * 2] * 2
    assert shapes("Llama", 4) == [[(1, 8)] * 2] * 4
    assert shapes("MindFormers, merged, as many key heads", 2) == [[(2, 8)] * 2] * 2
    assert shapes("latent, dense", 2) == [[(8,)] * 2] * 2  # rotated keys, which have no heads


def test_ranks_agree_on_the_pages_of_the_one_with_least_memory(monkeypatch):
    model = tiny_llama(base=HUGGING_FACE)
    rooms = iter([4 << 20, 1 << 20])
    monkeypatch.setattr("modelwright.engine.cache._free_memory", lambda _: next(rooms))

    def pages(mesh: Mesh) -> int:
        engine = Engine(copy.deepcopy(model), EngineConfig(max_batch=1000, token_budget=1000), mesh=mesh)
        return len(engine._runner._pools[0].keys.rows)

    token = 2 * (8 + 8) * 4  # two layers of one key head each
    assert in_ranks(2, pages) == [(1 << 20) // (4 * 2) // (16 * token)] * 2


@pytest.mark.slow
def test_a_pass_that_failed_in_one_rank_ends_the_others():
    """They are in the middle of it: whatever comes next would be added to the wrong sums."""
    model = build("Llama")

    def of(mesh: Mesh) -> Any:
        engine = Engine(copy.deepcopy(model), EngineConfig(**LIMITS), mesh=mesh)
        if not mesh.leads:
            with pytest.raises(Exception):  # noqa: B017 (a broken barrier, which stands for a broken connection)
                engine.follow()
            return
        engine._runner._compute = lambda _: 1 / 0  # type: ignore[method-assign]
        engine.add_request(PROMPTS[0], greedy(2))
        with pytest.raises(ZeroDivisionError) as failed:
            engine.step()
        with pytest.raises(RankLost, match="an earlier pass ended before its time"):
            engine.recover(failed.value)
        with pytest.raises(RankLost, match="an earlier pass ended before its time"):
            engine.step()
        engine.close()
        mesh.table.barrier.abort()

    in_ranks(2, of)


POISON = 15


def answers(mesh: Mesh, model: Any, prompts: list[list[int]]) -> dict[str, tuple[tuple[int, ...], str | None]]:
    """What an engine, of which passes with `POISON` raise in all ranks, says to each prompt: tokens, and its error."""
    engine = Engine(copy.deepcopy(model), EngineConfig(**LIMITS), mesh=mesh)
    forward = engine._runner._forward
    engine._runner._forward = lambda one: 1 / 0 if POISON in one.tokens else forward(one)  # type: ignore[method-assign]
    if not mesh.leads:
        engine.follow()
        return {}
    ended = {}
    for prompt in prompts:
        engine.add_request(prompt, greedy(6, logit_bias={POISON: -100.0}))
    while engine.has_work:
        try:
            updates = engine.step()
        except ZeroDivisionError as error:
            updates = engine.recover(error)
        ended |= {up.request: (up.completion.tokens, up.completion.error) for up in updates if up.completion}
    engine.close()
    return ended


CLEAN = [[token for token in prompt if token != POISON] for prompt in PROMPTS]


def check_answers(model: Any, found: dict[str, tuple[tuple[int, ...], str | None]]) -> None:
    wanted = [engine_of(model).generate([prompt], greedy(6, logit_bias={POISON: -100.0})) for prompt in CLEAN]
    assert [found[f"request-{number}"][0] for number in (0, 1, 3)] == [tokens_of(one)[0] for one in wanted]
    assert found["request-2"] == ((), "the model failed: ZeroDivisionError: division by zero")


@pytest.mark.parametrize("size", [2, 4])
def test_a_pass_that_failed_in_all_ranks_ends_the_request_that_is_to_blame(size):
    model, asked = build("Llama" if size == 2 else "latent, dense"), [CLEAN[0], CLEAN[1], [3, POISON, 5], CLEAN[2]]
    check_answers(model, in_ranks(size, lambda mesh: answers(mesh, model, asked))[0])


def _process(rank: int, port: int, said: Any) -> None:
    """A rank in a process of its own: an engine with a request to blame, and a failure of rank 0 alone."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    mesh_module.AGREEMENT = timedelta(seconds=3)
    store = TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    with torch.no_grad(), process_group("cpu", rank, 2, store) as mesh:
        found = answers(mesh, build("Llama"), [CLEAN[0], CLEAN[1], [3, POISON, 5], CLEAN[2]])
        alone = mesh.all_failed() if rank == 0 else None
        said.put((rank, found, alone))
        store.set(f"done {rank}", "")
        store.wait(["done 0", "done 1"])


@pytest.mark.slow
def test_ranks_in_processes_of_their_own_agree_on_failures():
    spawn = multiprocessing.get_context("spawn")
    said = spawn.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [spawn.Process(target=_process, args=(rank, port, said)) for rank in range(2)]
    for process in processes:
        process.start()
    by_rank = {rank: rest for rank, *rest in (said.get(timeout=600) for _ in processes)}
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found, alone = by_rank[0]
    check_answers(build("Llama"), found)
    assert alone is False  # where the other one's pass did not raise


def test_an_engine_that_let_the_others_go_serves_no_more():
    def work(engine: Engine) -> None:
        engine.close()
        engine.close()
        engine.add_request(PROMPTS[0], greedy(2))
        with pytest.raises(RankLost, match="or they were let go"):
            engine.step()

    shared(build("Llama"), 2, work)


def test_an_engine_of_one_rank_can_be_closed_and_goes_on():
    engine = engine_of(build("Llama"))
    engine.close()
    assert len(engine.generate([PROMPTS[0]], greedy(2))[0].completions[0].tokens) == 2


def test_a_part_is_no_model_to_serve():
    model = build("Llama")
    Engine(model, EngineConfig(**LIMITS), mesh=Mesh(0, 1))
    parts = in_ranks(2, lambda mesh: Engine(copy.deepcopy(model), EngineConfig(**LIMITS), mesh=mesh)._runner._served)
    assert [part.ranks for part in parts] == [2, 2]
    assert [part.draws for part in parts] == [64, 64]  # of the whole head
    with pytest.raises(ConfigError, match="the engine needs a whole model, of which it keeps its rank's part"):
        ServedModel.of(parts[0].model)
