"""The ranks of a program: processes that it starts here, or that torchrun did, each with a part of the model."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Self

import torch
from torch.distributed import TCPStore, is_torchelastic_launched  # pyright: ignore[reportPrivateImportUsage]

from modelwright.checkpoints.folder import Checkpoint
from modelwright.engine.engine import Engine
from modelwright.errors import CheckpointError, ConfigError, RequestError
from modelwright.parallel import Mesh, RankLost, process_group
from modelwright.serving.defaults import engine_config
from modelwright.serving.load import load_network, pick_device
from modelwright.serving.quiet import quieten_libraries

LOST = 1
"""The exit status of a program of which a rank ended too early."""
PARTING = 10.0
"""Seconds that ranks have to end once they were let go."""
HERE = "127.0.0.1"
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class Work:
    """What the other ranks are to compute: a checkpoint, its type, and the engine's limits."""

    checkpoint: Checkpoint
    dtype: str
    limits: dict[str, Any]


class Ranks:
    """The `count` ranks of a program, of which this process is one, until the block is left.

    Only rank 0 reads what is asked and answers it: it loads and begins with `start`. The others `follow`.

    Args:
        device: as the user calls it; on GPUs each rank takes the one of its own number.
        say: shows a sentence to the user; other processes are given it too, so it must be a module's function.

    Raises:
        RequestError: `count` is not how many processes torchrun started.
        ConfigError: there are not as many GPUs, or nothing carries tensors between such devices.
        SystemExit: on leaving, after a sentence, where a rank ended too early.
    """

    def __init__(self, count: int, device: str, say: Callable[[str], None]):
        self._count, self._device, self._say = count, device, say
        self._launched = is_torchelastic_launched()
        self._held = ExitStack()
        self._mesh: Mesh | None = None
        self._processes: list[Any] = []
        self._parted = False
        started = int(os.environ["WORLD_SIZE"]) if self._launched else count
        if started != count:
            raise RequestError(
                f"tensor_parallel ({count}) must be the number of torchrun's processes ({started})",
                field="tensor_parallel",
            )
        if count > 1:
            _check_devices(count, device)

    @property
    def follows(self) -> bool:
        """Whether this process is another one than rank 0: torchrun starts the command in each."""
        return self._launched and int(os.environ["RANK"]) > 0

    def follow(self) -> int:
        """Compute what rank 0 serves, until it ends; returns the exit status."""
        return _follow(self._own_group(), _own_device(self._device), self._say)

    def start(self, work: Work) -> Mesh:
        """Bring the ranks together and tell the others what to load; of one rank there is nobody to tell."""
        if self._count > 1:
            self._mesh = self._own_group() if self._launched else self._started_group()
            self._mesh.tell(work)
        return self._mesh or Mesh()

    def let_go(self, engine: Engine) -> None:
        """Let the others end: `engine` has served all it was asked."""
        engine.close()
        self._parted = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._launched and self._mesh is None and not self.follows and self._count > 1:
            self._own_group().tell(None)  # there was nothing to load, and they wait
        lost = self._lost() if isinstance(error, RankLost) else None
        for process in self._processes:
            process.join(PARTING if self._parted else 0)
            process.terminate()
            process.join()
        self._held.close()
        if lost is not None:
            self._say(f"modelwright: {lost}")
            raise SystemExit(LOST) from error

    def _own_group(self) -> Mesh:
        return self._held.enter_context(process_group(_own_device(self._device)))

    def _started_group(self) -> Mesh:
        """Processes on this machine, which meet at a port that only this machine reaches."""
        threads = torch.get_num_threads()
        own = max(1, threads // self._count)
        self._held.callback(torch.set_num_threads, threads)
        torch.set_num_threads(own)
        self._held.enter_context(_on_this_machine())
        store = TCPStore(HERE, 0, self._count, is_master=True, wait_for_workers=False)
        spawn = multiprocessing.get_context("spawn")
        with _no_interrupts():  # Ctrl-C is rank 0's
            for rank in range(1, self._count):
                how = (rank, self._count, store.port, own, self._device, self._say)
                self._processes.append(spawn.Process(target=_run_follower, args=how, daemon=True))
                self._processes[-1].start()
        while not store.check([_ready(rank) for rank in range(1, self._count)]):
            if wait([process.sentinel for process in self._processes], timeout=0.05):
                raise RankLost("a rank ended before it began")
        return self._held.enter_context(process_group(_own_device(self._device), 0, self._count, store))

    def _lost(self) -> str:
        """Which rank ended too early, as far as this process can know."""
        deadline = time.monotonic() + 2
        while self._processes and time.monotonic() < deadline:
            for rank, process in enumerate(self._processes, start=1):
                if process.exitcode:
                    return f"rank {rank} of {self._count} ended with status {process.exitcode}, and so do the others"
            wait([process.sentinel for process in self._processes], timeout=0.1)
        return f"one of the {self._count} ranks cannot be reached any more, and so all end"


def _run_follower(rank: int, count: int, port: int, threads: int, device: str, say: Callable[[str], None]) -> None:
    """A process that is one of the ranks."""
    torch.set_num_threads(threads)
    os.environ["LOCAL_RANK"] = str(rank)
    quieten_libraries()
    store = TCPStore(HERE, port, count, is_master=False)
    store.set(_ready(rank), "")
    with process_group(_own_device(device), rank, count, store) as mesh:
        sys.exit(_follow(mesh, _own_device(device), say))


def _follow(mesh: Mesh, device: torch.device, say: Callable[[str], None]) -> int:
    """Hear what to load, and compute; what is wrong with a model or a config is said by rank 0, which sees it too."""
    try:
        work = mesh.hear()
        if work is not None:
            model = load_network(work.checkpoint, dtype=work.dtype, device=device).model
            Engine(model, engine_config(model.config, work.limits), mesh=mesh).follow()
    except (RankLost, ConfigError, CheckpointError):
        return LOST
    except Exception as error:
        say(f"modelwright: rank {mesh.rank}: {type(error).__name__}: {error}")
        return LOST
    return 0


def _check_devices(count: int, device: str) -> None:
    """Refuse what cannot be shared before anything is started."""
    place = pick_device(device)
    if place.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"tensor_parallel ({count}) needs cpu or cuda devices, got {place.type}", field="tensor_parallel"
        )
    if place.type == "cuda" and (place.index is not None or torch.cuda.device_count() < count):
        found = str(place) if place.index is not None else str(torch.cuda.device_count())
        raise ConfigError(
            f"tensor_parallel ({count}) needs as many GPUs under the device cuda, got {found}", field="tensor_parallel"
        )


def _own_device(name: str) -> torch.device:
    """Where this rank computes."""
    place = pick_device(name)
    if place.type != "cuda":
        return place
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(own)
    return own


def _ready(rank: int) -> str:
    return f"rank {rank} is ready"


@contextmanager
def _on_this_machine() -> Iterator[None]:
    """Let gloo's ranks meet at the loopback interface, unless the user names another."""
    name = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if name is None or GLOO_INTERFACE in os.environ:
        yield
        return
    os.environ[GLOO_INTERFACE] = name
    try:
        yield
    finally:
        del os.environ[GLOO_INTERFACE]


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes started meanwhile hear no Ctrl-C.

    They are born with what is ignored, which only the main thread can change, or with what the thread that starts them
    has blocked.
    """
    if threading.current_thread() is not threading.main_thread():
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
