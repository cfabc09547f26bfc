"""What takes minutes: a server under all kinds of requests, and everything large at once."""

import asyncio
import base64
import io
import json
import random
import sys
import time

import pytest
from PIL import Image

from benchmarks.serve import soak
from modelwright.server.run import SWITCH
from tests.server.models import nano
from tests.server.serving import CHAT, COMPLETIONS, running


@pytest.mark.slow
def test_row_32_three_minutes_of_everything_leave_nothing_behind():
    found = soak(18771, minutes=3)
    assert found["requests"] > 200 and found["left_running"] == 0
    assert found["rss_last_over_first_third"] < 1.05
    assert abs(found["fds"][1] - found["fds"][0]) <= 2 and abs(found["threads"][1] - found["threads"][0]) <= 2


@pytest.mark.slow
def test_row_33_the_loop_goes_on_while_everything_large_is_prepared(request):
    """A picture of 10 MB, a prompt of 32,000 words and a choice of 100,000: medians of the lateness, and its worst."""
    noise = Image.frombytes("RGB", (1900, 1750), random.Random(0).randbytes(1900 * 1750 * 3))
    file = io.BytesIO()
    noise.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    words = {"type": "text", "text": "?"}
    shown = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, words]}
    choice = [f"word {n}" for n in range(100_000)]
    bodies = [
        (CHAT, {"messages": [shown], "max_tokens": 2}),
        (COMPLETIONS, {"prompt": "word " * 32_000, "max_tokens": 2}),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 2, "structured_outputs": {"choice": choice}}),
    ]

    raw = [(path, json.dumps({"model": "tiny", **body}).encode()) for path, body in bodies]  # not on the loop
    before = sys.getswitchinterval()
    request.addfinalizer(lambda: sys.setswitchinterval(before))
    sys.setswitchinterval(SWITCH)  # as a server does

    async def main():
        late = []

        async def watch():
            while True:
                start = time.perf_counter()
                await asyncio.sleep(0.005)
                late.append(time.perf_counter() - start - 0.005)

        async with running(nano(), {"max_picture_bytes": 20 * 2**20}) as server:
            watching = asyncio.ensure_future(watch())
            asked = (server.client.post(path, body) for path, body in raw)
            replies = await asyncio.gather(*asked)
            watching.cancel()
            return [reply.status for reply in replies], sorted(late)

    statuses, late = asyncio.run(main())
    assert statuses[0] == 200 and statuses[1] == 400 and statuses[2] in (200, 400)
    assert late[int(0.99 * len(late))] < 0.05
