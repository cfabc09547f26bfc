"""The engine of vl2-nano asked directly, for `benchmarks.serve`: for each line on stdin four streams and their rate."""

import asyncio
import json
import statistics
import sys
import time

from modelwright.engine.async_engine import AsyncEngine
from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.server.run import SWITCH
from modelwright.serving.load import load_network
from modelwright.serving.opened import find_model
from modelwright.serving.prompts import encode_messages

TOKENS, STREAMS = 200, 4


async def run() -> None:
    loaded = load_network(find_model("vl2-nano").checkpoint)
    question = [{"role": "user", "content": "How many shapes are there?"}]
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, skip_special_tokens=False)
    async with AsyncEngine(Engine(loaded.model, None, loaded.tokenizer)) as serving:

        async def one(firsts: list[float]) -> None:
            start, first = time.perf_counter(), None
            async for update in serving.stream(encode_messages(loaded, question), params):
                if first is None and update.text:
                    first = time.perf_counter() - start
                    firsts.append(first)

        while await asyncio.to_thread(sys.stdin.readline):
            firsts: list[float] = []
            start, spent = time.perf_counter(), time.process_time()
            await asyncio.gather(*(one(firsts) for _ in range(STREAMS)))
            seconds = time.perf_counter() - start
            rate = TOKENS * STREAMS / seconds
            used = (time.process_time() - spent) / (TOKENS * STREAMS)
            print(json.dumps({"rate": rate, "first": statistics.median(firsts), "cpu": used}), flush=True)


if __name__ == "__main__":
    sys.setswitchinterval(SWITCH)  # as the server does
    asyncio.run(run())
