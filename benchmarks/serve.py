"""What HTTP costs, and how a server bears crowds: the load table of the server, each ratio within one run.

    python -m benchmarks.serve [--cases overhead streams queue slow cancel soak] [--out FILE] [--minutes M]

overhead  vl2-nano over HTTP beside the same engine asked directly, one request alone and four together
streams   200 streams from an engine that computes nothing: how late the event loop is, memory of a stream
queue     200 requests more than are taken: how soon they are refused, and whether probes are answered
slow      500 readers who take nothing, 100 senders of a byte a second, 1,000 idle connections, beside four who read
cancel    2,000 requests of which the client leaves at random
soak      so many minutes of requests, 30 % left early and 20 % refused: memory, descriptors and threads at both ends
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.serve_client import QUESTION, Kept, Timed, ask, connect, head, mute, percentile, read_to_end, stream

ROOT = Path(__file__).parents[1]
ALONE, SHORT, LONG = 16, 8, 200
"""Requests one after another in a turn, and the tokens of one that is alone, and of one of four together."""
BODY = {"model": "vl2-nano", "messages": QUESTION, "temperature": 0, "ignore_eos": True}


@contextmanager
def server(*command: str, port: int) -> Iterator[int]:
    """A server as a process; gives its id."""
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        asyncio.run(_ready(port, process))
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()


async def _ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    while True:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        with suppress(OSError, IndexError):
            if (await ask(port, "/readyz"))[0] == 200:
                return
        await asyncio.sleep(0.2)


def ours(port: int, *flags: str) -> tuple[str, ...]:
    return ("modelwright", "serve", "vl2-nano", "--port", str(port), *flags)


def fake(port: int, rate: int) -> tuple[str, ...]:
    return ("benchmarks.serve_fake", str(port), str(rate))


def told(pid: int) -> dict[str, int]:
    """Memory in bytes, descriptors and threads of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = {name: int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1]) for name in ("VmRSS", "Threads")}  # type: ignore[index]
    return {"rss": found["VmRSS"] * 1024, "threads": found["Threads"], "fds": len(os.listdir(f"/proc/{pid}/fd"))}


def cpu(pid: int) -> float:
    """Seconds of processor time that a process took."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def lateness(port: int) -> dict[str, float]:
    """The buckets of how late the event loop was, so far."""
    _, page = await ask(port, "/metrics")
    found = re.findall(rb'event_loop_lag_seconds_bucket\{[^}]*le="([^"]+)"[^}]*\} ([0-9.e+]+)', page)
    return {edge.decode(): float(count) for edge, count in found}


def late_p99(before: dict[str, float], after: dict[str, float]) -> float:
    """The edge below which 99 % of the lateness between two looks lies."""
    counts = {float(edge): after[edge] - before.get(edge, 0) for edge in after}
    total = max(counts.values())
    return min(edge for edge, count in counts.items() if count >= 0.99 * total)


def overhead(port: int) -> dict[str, Any]:
    """Requests over HTTP beside the same engine asked directly, in one process and taking turns."""
    served: dict[str, list[Any]] = {"new": [], "kept": [], "whole": [], "together": [], "rate": [], "cpu": []}
    direct: dict[str, list[Any]] = {"first": [], "end": [], "together": [], "rate": [], "cpu": []}

    async def asked(streams: int, tokens: int) -> dict[str, Any]:
        return json.loads((await ask(port, f"/direct?{streams},{tokens}"))[1])

    async def alone() -> None:
        async with Kept(port) as kept:
            for _ in range(ALONE):
                said = await asked(1, SHORT)
                direct["first"] += said["firsts"]
                direct["end"] += said["ends"]
                served["new"].append((await stream(port, BODY | {"max_tokens": SHORT})).first)
                served["kept"].append((await stream(port, BODY | {"max_tokens": SHORT}, kept)).first)
                start = time.perf_counter()
                status, _ = await kept.ask("/v1/chat/completions", BODY | {"max_tokens": SHORT})
                served["whole"].append(time.perf_counter() - start)
                assert status == 200

    async def together(pid: int) -> None:
        for _ in range(4):
            direct["together"] += (await asked(4, SHORT))["firsts"]
            served["together"] += [each.first for each in await _several(port, 4, BODY | {"max_tokens": SHORT})]
        said = await asked(4, LONG)
        before, start = cpu(pid), time.perf_counter()
        await asyncio.gather(*(read_to_end(port, BODY | {"max_tokens": LONG}) for _ in range(4)))
        for name in ("rate", "cpu"):
            direct[name].append(said[name])
        served["rate"].append(4 * LONG / (time.perf_counter() - start))
        served["cpu"].append((cpu(pid) - before) / LONG / 4)

    with server("benchmarks.serve_direct", str(port), port=port) as pid:
        for turn in range(8):
            asyncio.run(alone())
            asyncio.run(together(pid))
            if not turn:  # which warms up
                for values in (*served.values(), *direct.values()):
                    values.clear()

    def more(what: str, than: str) -> dict[str, float]:
        shares = {"p50": 0.5, "p99": 0.99}
        return {
            name: 1e3 * (percentile(served[what], share) - percentile(direct[than], share))
            for name, share in shares.items()
        }

    ratios = [mine / theirs for mine, theirs in zip(served["rate"], direct["rate"], strict=True)]
    rates = statistics.median(served["rate"]), statistics.median(direct["rate"])
    return {
        "tokens_per_second_ratio": statistics.median(ratios),
        "server_tokens_per_second": rates[0],
        "engine_tokens_per_second": rates[1],
        "engine_first_token_ms": 1e3 * statistics.median(direct["first"]),
        "first_token_more_ms": more("kept", "first"),
        "first_token_of_new_connections_more_ms": more("new", "first"),
        "whole_more_ms": more("whole", "end"),
        "first_token_of_four_more_ms": more("together", "together"),
        "cpu_more_us_per_token": 1e6 * (statistics.median(served["cpu"]) - statistics.median(direct["cpu"])),
    }


async def _several(port: int, count: int, body: dict[str, Any]) -> list[Timed]:
    return await asyncio.gather(*(stream(port, body) for _ in range(count)))


def streams(port: int) -> dict[str, Any]:
    """200 streams at once of 10 tokens a second each: from uvicorn alone, and from a server without an engine."""

    async def run(pid: int) -> dict[str, Any]:
        await _several(port, 20, BODY | {"max_tokens": 20})
        before, late = told(pid), await lateness(port)
        work = asyncio.ensure_future(_several(port, 200, BODY | {"max_tokens": 150}))
        await asyncio.sleep(2)  # all have begun
        during, spent, frames = told(pid), cpu(pid), 200 * 10 * 10
        await asyncio.sleep(10)
        spent = cpu(pid) - spent
        timed = await work
        found = {
            "whole": sum(each.whole and each.tokens == 150 for each in timed),
            "bytes_per_stream": (during["rss"] - before["rss"]) / 200,
            "cpu_us_per_frame": 1e6 * spent / frames,
        }
        return found | ({"loop_late_p99_ms": 1e3 * late_p99(late, await lateness(port))} if late else {})

    with server("benchmarks.serve_bare", str(port), "10", port=port) as pid:
        bare = asyncio.run(run(pid))
    with server(*fake(port, 10), port=port) as pid:
        found = asyncio.run(run(pid))
    more = found["cpu_us_per_frame"] - bare["cpu_us_per_frame"]
    return found | {"bare_cpu_us_per_frame": bare["cpu_us_per_frame"], "more_cpu_us_per_frame": more}


def queue(port: int) -> dict[str, Any]:
    """More requests than are taken."""

    async def run() -> dict[str, Any]:
        held = [asyncio.ensure_future(stream(port, BODY | {"max_tokens": 1500})) for _ in range(12)]
        await asyncio.sleep(1)
        times: list[float] = []
        statuses: list[int] = []
        probes: list[float] = []

        async def one() -> None:
            start = time.perf_counter()
            status, body = await ask(port, "/v1/chat/completions", BODY)
            times.append(time.perf_counter() - start)
            statuses.append(status)
            assert json.loads(body)["error"]["code"] == "queue_full"

        async def probe() -> None:
            while len(times) < 200:
                start = time.perf_counter()
                await ask(port, "/livez")
                probes.append(time.perf_counter() - start)
                await asyncio.sleep(0.01)

        looking = asyncio.ensure_future(probe())
        for _ in range(20):
            await asyncio.gather(*(one() for _ in range(10)))
        await looking
        for each in held:
            each.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await asyncio.sleep(1)
        after = await stream(port, BODY | {"max_tokens": 3})
        return {
            "refused": statuses.count(429),
            "refusal_p99_ms": 1e3 * percentile(times, 0.99),
            "livez_worst_ms": 1e3 * max(probes),
            "served_after": after.whole,
        }

    with server(*ours(port, "--max-batch", "4", "--max-queue", "8"), port=port):
        return asyncio.run(run())


def slow(port: int) -> dict[str, Any]:
    """Readers who take nothing, senders of a byte a second, and connections that say nothing."""

    async def read() -> float:
        start = time.perf_counter()
        timed = await _several(port, 4, BODY | {"max_tokens": 40})
        return sum(each.tokens for each in timed) / (time.perf_counter() - start)

    async def run(pid: int) -> dict[str, Any]:
        alone = [await read() for _ in range(3)]
        before = told(pid)
        raw = json.dumps(BODY | {"stream": True, "max_tokens": 1500}).encode()
        deaf = [mute(port, head("POST", "/v1/chat/completions", raw) + raw) for _ in range(500)]
        idle = [mute(port) for _ in range(1000)]
        drips = [mute(port, head("POST", "/v1/chat/completions", b"x" * 1000)) for _ in range(100)]
        await asyncio.sleep(2)  # all have begun
        begun = json.loads((await ask(port, "/v1/status"))[1])["running"]
        crowded, spent, start = [], cpu(pid), time.perf_counter()
        for _ in range(3):
            crowded.append(await read())
            for each in drips:
                with suppress(OSError):
                    each.send(b"x")
        busy = (cpu(pid) - spent) / (time.perf_counter() - start)
        for each in (*deaf, *idle, *drips):
            each.close()
        await asyncio.sleep(8)
        after = told(pid)
        return {
            "streams_not_read": begun,
            "others_ratio": statistics.median(crowded) / statistics.median(alone),
            "server_busy": busy,
            "fds_before_after": [before["fds"], after["fds"]],
            "rss_grew_bytes": after["rss"] - before["rss"],
        }

    with server(*fake(port, 5), port=port) as pid:
        return asyncio.run(run(pid))


def cancel(port: int) -> dict[str, Any]:
    """Clients who leave at any moment."""

    async def one(draw: random.Random) -> None:
        body = BODY | {"stream": draw.random() < 0.5, "max_tokens": draw.choice([1, 20, 200])}
        raw = json.dumps(body).encode()
        with suppress(OSError):
            reader, writer = await connect(port)
            writer.write(head("POST", "/v1/chat/completions", raw) + raw)
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(), draw.expovariate(4))
            writer.close()

    async def run(pid: int) -> dict[str, Any]:
        draw, before = random.Random(0), told(pid)
        for _ in range(100):
            await asyncio.gather(*(one(draw) for _ in range(20)))
        await asyncio.sleep(3)
        status = json.loads((await ask(port, "/v1/status"))[1])
        after = await stream(port, BODY | {"max_tokens": 3})
        _, page = await ask(port, "/metrics")
        aborted = sum(float(n) for n in re.findall(rb"requests_aborted_total\{[^}]*\} ([0-9.e+]+)", page))
        ended = sum(float(n) for n in re.findall(rb"request_success_total\{[^}]*\} ([0-9.e+]+)", page))
        refused = sum(float(n) for n in re.findall(rb"requests_refused_total\{[^}]*\} ([0-9.e+]+)", page))
        usage = re.findall(rb"kv_cache_usage_perc\{[^}]*\} ([0-9.e+]+)", page)
        return {
            "left_running": status["running"] + status["waiting"] + len(status["requests"]),
            "aborted": aborted, "ended": ended - 1, "refused": refused,
            "all": aborted + ended - 1 + refused,
            "cache_used": float(usage[0]) if usage else None,
            "served_after": after.whole,
            "fds_before_after": [before["fds"], told(pid)["fds"]],
        }  # fmt: skip

    with server(*ours(port), port=port) as pid:
        return asyncio.run(run(pid))


def soak(port: int, minutes: float) -> dict[str, Any]:
    """All kinds of requests for a while."""

    async def one(draw: random.Random) -> None:
        body: dict[str, Any] = BODY | {"max_tokens": draw.randrange(1, 60), "stream": draw.random() < 0.6}
        body["messages"] = [{"role": "user", "content": "x " * draw.randrange(1, 300)}]
        if draw.random() < 0.2:
            body |= draw.choice([{"n": 0}, {"model": "y"}, {"guided_json": {}}, {"messages": []}])
        raw = json.dumps(body).encode()
        with suppress(OSError):
            reader, writer = await connect(port)
            writer.write(head("POST", "/v1/chat/completions", raw) + raw)
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(), draw.expovariate(2) if draw.random() < 0.3 else 60)
            writer.close()

    async def run(pid: int) -> dict[str, Any]:
        draw, looks, asked = random.Random(1), [], 0
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            await asyncio.gather(*(one(draw) for _ in range(16)))
            asked += 16
            if asked % 160 == 0:
                looks.append(told(pid))
        await asyncio.sleep(7)
        looks.append(told(pid))
        third = len(looks) // 3
        status = json.loads((await ask(port, "/v1/status"))[1])
        return {
            "requests": asked,
            "rss_last_over_first_third": _middle(looks[-third:], "rss") / _middle(looks[third : 2 * third], "rss"),
            "fds": [looks[third]["fds"], looks[-1]["fds"]],
            "threads": [looks[third]["threads"], looks[-1]["threads"]],
            "left_running": status["running"] + status["waiting"],
        }

    with server(*ours(port), port=port) as pid:
        return asyncio.run(run(pid))


def _middle(looks: list[dict[str, int]], what: str) -> float:
    return statistics.median(each[what] for each in looks)


CASES: dict[str, Callable[[int], Any] | Awaitable[Any]] = {
    "overhead": overhead, "streams": streams, "queue": queue, "slow": slow, "cancel": cancel,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=[*CASES, "soak"])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for the results; those of other cases in it are kept")
    parser.add_argument("--port", type=int, default=18431)
    asked = parser.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    for case in asked.cases:
        run: Any = CASES.get(case, lambda port: soak(port, asked.minutes))
        found[case] = run(asked.port)
        print(case, json.dumps(found[case], indent=1))
        if asked.out:
            asked.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
