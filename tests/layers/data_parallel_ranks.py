"""Two processes that train one model under torch's data parallelism, for ``test_data_parallel.py``.

They are spawned, so each imports this file and none that collects tests.
"""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modelwright.layers.balance import steered_routers
from tests.fakes import GROUPED, MHA, MOE, NOAUX, tiny_v2, tokens
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama

RANKS, STEPS, RATE = 2, 3, 0.01
PATIENCE = 180.0
"""Seconds after which both processes are ended, whatever they wait for."""
STEERED = {"topk_bias_update_rate": RATE}
BIASED = {"balance_via_topk_bias": True, "topk_bias_update_rate": RATE}
MODELS: dict[str, Callable[[], Any]] = {
    "greedy": lambda: tiny_v2(base=MOE, aux_loss_alpha=0.1),
    "greedy, heads": lambda: tiny_v2(base=MHA),
    "group_limited_greedy": lambda: tiny_v2(base=GROUPED, aux_loss_alpha=0.1),
    "noaux_tc": lambda: tiny_v2(base=NOAUX, **STEERED),
    "noaux_tc, two layers": lambda: tiny_v2(base=NOAUX, num_hidden_layers=3, **STEERED),
    "llama": lambda: tiny_llama(base=HUGGING_FACE, moe_config=EXPERTS),
    "llama, biased": lambda: tiny_llama(base=HUGGING_FACE, moe_config=EXPERTS | BIASED),
}


def rows(step: int, number: int, rank: int) -> torch.Tensor:
    """The tokens of one pass of a rank."""
    return tokens(2, 9, seed=100 * step + 10 * number + rank)


def trained(model: Any, passes: int, ranks: range, forward: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer after ``STEPS`` steps of ``passes`` passes over the rows of ``ranks``.

    Args:
        forward: the model, or what passes its gradients around.
    """
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.update_router_bias_with(optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        for number in range(passes):
            for rank in ranks:
                ids = rows(step, number, rank)
                (forward(input_ids=ids, labels=ids).loss / len(ranks)).backward()
        optimizer.step()
    biases = {f"bias {n}": router.e_score_correction_bias for n, router in enumerate(steered_routers(model))}
    return {name: tensor.detach().clone() for name, tensor in (*model.state_dict().items(), *biases.items())}


def train_ranks(folder: Path, passes: tuple[int, ...]) -> dict[str, list[dict[str, torch.Tensor]]]:
    """What each rank ends with, by model and passes: ``"noaux_tc 2"`` to a list in the order of the ranks.

    Raises:
        AssertionError: the processes did not both end well within ``PATIENCE``; neither runs on.
    """
    context = processes.get_context("spawn")
    started = [context.Process(target=_rank, args=(rank, str(folder), passes), daemon=True) for rank in range(RANKS)]
    try:
        for process in started:
            process.start()
        end = time.monotonic() + PATIENCE
        for process in started:
            process.join(max(end - time.monotonic(), 0.0))
        codes = [process.exitcode for process in started]
    finally:
        for process in started:
            if process.is_alive():
                process.kill()
                process.join()
    reached = {path.name: path.read_text() for path in folder.glob("*.at")}
    assert codes == [0] * RANKS, f"exit codes {codes} (None: killed after {PATIENCE:.0f} s); at {reached}"
    found = [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]
    return {name: [each[name] for each in found] for name in found[0]}


def _rank(rank: int, folder: str, passes: tuple[int, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    found = {}
    for name, build in MODELS.items():
        for number in passes:
            Path(f"{folder}/{rank}.at").write_text(f"{name} {number}")
            model = build()
            wrapped = DistributedDataParallel(model)
            found[f"{name} {number}"] = trained(model, number, range(rank, rank + 1), wrapped)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
