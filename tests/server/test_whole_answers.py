"""Answers that are told as a whole: the loop is not woken for each of their tokens, and they say the same."""

import asyncio
from typing import Any

import pytest

from modelwright.server import answering
from modelwright.server.answers import Answer
from modelwright.server.frames import DONE
from tests.server.models import llama
from tests.server.serving import CHAT, COMPLETIONS, RESPONSES, running

DRAWN = {"model": "tiny", "temperature": 0, "ignore_eos": True}
ASKED = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 40, "logprobs": True, "n": 2} | DRAWN


def test_a_whole_answer_is_read_in_few_pieces_and_says_what_the_stream_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answering, "PAUSE", 1e9)
    taken, take = 0, Answer.take

    def counted(answer: Answer, update: Any) -> Any:
        nonlocal taken
        taken += 1
        return take(answer, update)

    monkeypatch.setattr(Answer, "take", counted)

    async def main() -> tuple[Any, Any, list[float]]:
        async with running(llama()) as server:
            whole, counts = await server.client.post(CHAT, ASKED), [server.counted("inter_token_latency_seconds_count")]
            assert taken <= 6
            streamed = await server.client.post(CHAT, ASKED | {"stream": True})
            counts.append(server.counted("inter_token_latency_seconds_count"))
            counts += [
                server.counted(f"{each}_count")
                for each in ("time_to_first_token_seconds", "e2e_request_latency_seconds")
            ]
            return whole, streamed, counts

    whole, streamed, counts = asyncio.run(main())
    assert streamed.body.endswith(DONE)
    choices = [choice for frame in streamed.frames()[:-1] for choice in frame["choices"]]
    for told in whole.json()["choices"]:
        mine = [choice for choice in choices if choice["index"] == told["index"]]
        assert told["message"]["content"] == "".join(each["delta"].get("content") or "" for each in mine)
        scores = [one for each in mine for one in (each.get("logprobs") or {"content": []})["content"]]
        said = told["logprobs"]["content"]
        assert [one["token"] for one in said] == [one["token"] for one in scores] and len(scores) == 40
        # The second request finds the first one's pages, so that its prompt is read in another pass.
        assert [one["logprob"] for one in said] == pytest.approx([one["logprob"] for one in scores], abs=1e-4)
    assert counts == [78, 156, 2, 4]  # each token but an output's first, however the updates were joined


def test_who_pauses():
    chat, text = {"messages": ASKED["messages"], "max_tokens": 2}, {"prompt": "hello", "max_tokens": 2}
    response = {"input": "hello", "max_output_tokens": 2}
    asked = [(CHAT, chat), (COMPLETIONS, text), (RESPONSES, response)]

    async def main(**settings: Any) -> list[float]:
        async with running(llama(), settings) as server:
            seen, submit = [], server.engine.submit

            def watched(*given: Any, **named: Any) -> Any:
                seen.append(named["pause"])
                return submit(*given, **named)

            server.engine.submit = watched  # type: ignore[method-assign]
            for path, body in asked:
                for stream in (False, True):
                    assert (await server.client.post(path, DRAWN | body | {"stream": stream})).status == 200
            return seen

    assert asyncio.run(main()) == [answering.PAUSE, 0.0] * 3
    # The tokens of thoughts are counted by update, so that updates must stay apart.
    assert asyncio.run(main(reasoning="think")) == [0.0, 0.0, answering.PAUSE, 0.0, 0.0, 0.0]
