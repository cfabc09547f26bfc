"""``modelwright chat``: loads a model into an engine and asks it once, or hands it to an interactive session."""

import json
import time
from pathlib import Path
from typing import Any

from modelwright.checkpoints.folder import Checkpoint
from modelwright.checkpoints.load import pick_device
from modelwright.cli import terminal
from modelwright.cli.boxes import check_target, draw_boxes, find_boxes
from modelwright.cli.conversation import Picture, Turn, ask, encode, open_pictures, refuse_pictures
from modelwright.cli.defaults import end_tokens, engine_config, sampling_params
from modelwright.cli.generation import Answer, answer
from modelwright.cli.interrupt import INTERRUPTED
from modelwright.cli.loading import find_model, load_model
from modelwright.cli.options import ChatOptions
from modelwright.cli.ranks import Ranks, Work
from modelwright.cli.report import Usage, as_lines, as_object
from modelwright.cli.session import Session
from modelwright.engine.engine import Engine
from modelwright.errors import RequestError

STEP_TOKENS = 512
"""How much of a prompt is read in a step: few enough that Ctrl-C is heard soon, which waits for the step's end."""


def run_chat(options: ChatOptions) -> int:
    """Check what can be checked, load, and answer the prompt or hold a session; returns the exit status."""
    terminal.quieten_libraries()
    with Ranks(options.tensor_parallel, options.device) as ranks:
        return ranks.follow() if ranks.follows else _run(options, ranks)


def _run(options: ChatOptions, ranks: Ranks) -> int:
    if options.draw is not None:
        check_target(options.draw)
    pick_device(options.device)
    pictures = open_pictures(options.images)
    checkpoint = find_model(options.model)
    if checkpoint.tokens_are_colours:
        raise RequestError(f"{options.model} continues pictures and cannot chat: that is `modelwright complete-image`")
    if pictures and not checkpoint.reads_pictures:
        raise refuse_pictures(options.model, checkpoint.family, len(pictures))
    first = None if options.prompt is None else ask(options.prompt, pictures, checkpoint.reads_pictures)
    try:
        chat = Chat(options, checkpoint, ranks)
        if first is None:
            status = Session(chat, options.model, checkpoint, pictures).run()
        else:
            status = INTERRUPTED if chat.reply((first,)).interrupted else 0
        ranks.let_go(chat.engine)
        return status
    except KeyboardInterrupt:
        return INTERRUPTED


class Chat:
    """A model in an engine of its own, and how the user wants its answers shown.

    The engine serves one conversation at a time, and finds the earlier turns of it in its pages.
    """

    def __init__(self, options: ChatOptions, checkpoint: Checkpoint, ranks: Ranks):
        start = time.perf_counter()
        self.options = options
        mesh = ranks.start(Work(checkpoint.folder, options.dtype, _limits(options.chunk_size)))
        self.loaded = load_model(options.model, checkpoint, options.dtype, options.device, "chat")
        config = self.loaded.model.config
        self.engine = Engine(self.loaded.model, engine_config(config, _limits(options.chunk_size)), mesh=mesh)
        ends = end_tokens(self.loaded.tokenizer, self.loaded.model)
        self.params = sampling_params(config, {"eos_token_ids": ends} | options.sampling.given())
        self.load_seconds = time.perf_counter() - start

    def reply(self, turns: tuple[Turn, ...]) -> Answer:
        """Answer the last of ``turns``, show it as asked, and draw its boxes if asked."""
        options = self.options
        system = (Turn("system", options.system.strip()),) if options.system.strip() else ()
        prompt = encode(self.loaded, (*system, *turns))
        emit = (lambda _: None) if options.as_json else terminal.write
        reply = answer(self.engine, self.loaded.tokenizer, prompt, self.params, emit)
        usage = Usage(prompt, reply, self.load_seconds)
        pictures = tuple(picture for turn in turns for picture in turn.pictures)
        if options.as_json:
            terminal.write(json.dumps(as_object(usage, find_boxes(reply.text, pictures).groundings)))
        terminal.write("\n")
        if options.draw is not None:
            self._draw(options.draw, reply.text, pictures)
        if options.stats:
            terminal.say(as_lines(usage, self.loaded.model.device))
        return reply

    def _draw(self, path: Path, text: str, pictures: tuple[Picture, ...]) -> None:
        report = find_boxes(text, pictures)
        for skipped in report.skipped:
            terminal.say(f"skipped {skipped.text!r}: {skipped.reason}")
        terminal.say(draw_boxes(path, report, pictures))


def _limits(chunk_size: int | None) -> dict[str, Any]:
    """One conversation at a time, whose prompts are read in steps of `chunk_size` tokens where that is asked for."""
    if chunk_size is None:
        return {"max_batch": 1, "token_budget": STEP_TOKENS}
    return {"max_batch": 1, "token_budget": chunk_size, "chunk_prefill": True}
