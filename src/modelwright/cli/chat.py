"""``modelwright chat``: loads a model and asks it once, or hands it to an interactive session."""

import json
import time
from pathlib import Path

from modelwright import zoo
from modelwright.checkpoints import Checkpoint, Loaded, find_checkpoint, load, pick_device
from modelwright.cli import terminal
from modelwright.cli.boxes import check_target, draw_boxes, find_boxes
from modelwright.cli.conversation import Picture, Turn, ask, encode, open_pictures, refuse_pictures
from modelwright.cli.generation import Answer, answer
from modelwright.cli.options import DEFAULT_MODEL, ChatOptions
from modelwright.cli.report import Usage, as_lines, as_object
from modelwright.cli.session import Session
from modelwright.errors import RequestError

INTERRUPTED = 130
"""The exit status of a command ended by Ctrl-C, as shells know it."""


def run_chat(options: ChatOptions) -> int:
    """Check what can be checked, load, and answer the prompt or hold a session; returns the exit status."""
    terminal.quieten_libraries()
    if options.draw is not None:
        check_target(options.draw)
    pick_device(options.device)
    pictures = open_pictures(options.images)
    checkpoint = _find(options.model)
    if pictures and not checkpoint.reads_pictures:
        raise refuse_pictures(options.model, checkpoint.family, len(pictures))
    first = None if options.prompt is None else ask(options.prompt, pictures, checkpoint.reads_pictures)
    chat = Chat(options, checkpoint)
    if first is None:
        return Session(chat, options.model, checkpoint, pictures).run()
    reply = chat.reply((first,))
    return INTERRUPTED if reply.interrupted else 0


class Chat:
    """A loaded model and how the user wants its answers shown."""

    def __init__(self, options: ChatOptions, checkpoint: Checkpoint):
        start = time.perf_counter()
        with terminal.loading_bar(options.model) as progress:
            self.loaded: Loaded = load(checkpoint.folder, dtype=options.dtype, device=options.device, progress=progress)
        self.load_seconds = time.perf_counter() - start
        self.options = options
        if not self.loaded.model.can_generate():
            raise RequestError(f"{options.model} is a {type(self.loaded.model).__name__}, which cannot chat")

    def reply(self, turns: tuple[Turn, ...]) -> Answer:
        """Answer the last of ``turns``, show it as asked, and draw its boxes if asked."""
        options = self.options
        system = (Turn("system", options.system.strip()),) if options.system.strip() else ()
        prompt = encode(self.loaded, (*system, *turns))
        emit = (lambda _: None) if options.as_json else terminal.write
        reply = answer(self.loaded, prompt, options.sampling, options.chunk_size, emit)
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


def _find(model: str) -> Checkpoint:
    """The checkpoint of a zoo name (which comes first), a folder or a hub id."""
    if model == DEFAULT_MODEL or model in zoo.names():
        return find_checkpoint(zoo.path(model))
    return find_checkpoint(Path(model).expanduser() if model.startswith("~") else model)
