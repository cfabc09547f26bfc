"""``modelwright chat``: loads a model into an engine and asks it once, or hands it to an interactive session."""

import json
import time
from pathlib import Path
from typing import Any

from modelwright.cli import terminal
from modelwright.cli.boxes import check_target, draw_boxes, find_boxes
from modelwright.cli.chat_options import ChatOptions
from modelwright.cli.console import say, write
from modelwright.cli.conversation import Picture, Utterance, ask, open_pictures, refuse_pictures
from modelwright.cli.interrupt import INTERRUPTED, Interrupt
from modelwright.cli.report import Usage, as_lines, as_object
from modelwright.cli.session import Session
from modelwright.cli.source import typed_text
from modelwright.engine.output import FinishReason
from modelwright.errors import RequestError
from modelwright.serving.answer import Answer, answer
from modelwright.serving.load import pick_device
from modelwright.serving.opened import Named, find_model
from modelwright.serving.prompts import Rendering, encode_messages, read_template, require_template
from modelwright.serving.quiet import quieten_libraries
from modelwright.serving.ranks import Ranks

STEP_TOKENS = 512
"""How much of a prompt is read in a step: few enough that Ctrl-C is heard soon, which waits for the step's end."""


def run_chat(options: ChatOptions) -> int:
    """Check what can be checked, load, and answer the prompt or hold a session; returns the exit status."""
    quieten_libraries()
    with Ranks(options.machine.tensor_parallel, options.machine.device, say) as ranks:
        return ranks.follow() if ranks.follows else _run(options, ranks)


def _run(options: ChatOptions, ranks: Ranks) -> int:
    if options.draw is not None:
        check_target(options.draw)
    pick_device(options.machine.device)
    name, prompt = options.asked
    pictures = open_pictures(options.images)
    model = find_model(name)
    checkpoint = model.checkpoint
    if checkpoint.tokens_are_colours:
        raise RequestError(f"{name} continues pictures and cannot chat: that is `modelwright complete-image`")
    if pictures and not checkpoint.reads_pictures:
        raise refuse_pictures(name, checkpoint.family, len(pictures))
    template = read_template(options.chat_template)
    require_template(checkpoint, template)
    first = None if prompt is None else ask(typed_text(prompt), pictures, checkpoint.reads_pictures)
    try:
        chat = Chat(options, model, ranks, template)
        if first is None:
            status = Session(chat, model, pictures).run()
        else:
            status = INTERRUPTED if chat.reply((first,)).interrupted else 0
        ranks.let_go(chat.opened.engine)
        return status
    except KeyboardInterrupt:
        return INTERRUPTED


class Chat:
    """A model in an engine of its own, and how the user wants its answers shown.

    The engine serves one conversation at a time, and finds the earlier turns of it in its pages.
    """

    def __init__(self, options: ChatOptions, model: Named, ranks: Ranks, template: str | None = None):
        start = time.perf_counter()
        self.options = options
        self.rendering = Rendering(chat_template=template)
        limits = _limits(options.engine.given())
        self.opened = terminal.load(model, "chat", limits, options.machine, ranks, template=template)
        self.params = self.opened.params(options.params())
        self.load_seconds = time.perf_counter() - start

    def reply(self, said: tuple[Utterance, ...]) -> Answer:
        """Answer the last of what was `said`, show it as asked, and draw its boxes if asked."""
        options = self.options
        system = (Utterance("system", options.system),) if options.system.strip() else ()
        prompt = encode_messages(self.opened.loaded, [each.message() for each in (*system, *said)], self.rendering)
        emit = (lambda _: None) if options.as_json else write
        with Interrupt() as stop:
            reply = answer(self.opened.engine, prompt, self.params, emit, lambda: stop.asked)
        usage = Usage(prompt, reply, self.load_seconds)
        pictures = tuple(picture for each in said for picture in each.pictures)
        if options.as_json:
            write(json.dumps(as_object(usage, find_boxes(reply.text, pictures).groundings)))
        write("\n")
        if reply.finish_reason is FinishReason.LENGTH and not options.as_json:
            say(_cut(reply.tokens, self.params.max_tokens, self.opened.engine.context))
        if options.draw is not None:
            self._draw(options.draw, reply.text, pictures)
        if options.stats:
            say(as_lines(usage, self.opened.loaded.model.device))
        return reply

    def _draw(self, path: Path, text: str, pictures: tuple[Picture, ...]) -> None:
        report = find_boxes(text, pictures)
        for skipped in report.skipped:
            say(f"skipped {skipped.text!r}: {skipped.reason}")
        say(draw_boxes(path, report, pictures))


def _cut(tokens: int, allowed: int | None, context: int) -> str:
    """Why an answer ends where it does, which is no end of its own."""
    cut = f"the answer was cut at {tokens} token{'s' * (tokens != 1)}"
    if allowed is None or tokens < allowed:
        return f"({cut}: the context of {context} tokens is full)"
    return f"({cut}; --max-tokens allows more)"


def _limits(asked: dict[str, Any]) -> dict[str, Any]:
    """One conversation at a time, whose prompts are read in steps of ``token_budget`` where that is asked for."""
    steps = {"chunk_prefill": True} if "token_budget" in asked else {"token_budget": STEP_TOKENS}
    return {"max_batch": 1} | steps | asked
