"""An interactive session: lines from the user, answers from the model, the conversation kept between them."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from modelwright.cli.console import say
from modelwright.cli.conversation import Picture, Utterance, ask, open_pictures, refuse_pictures
from modelwright.errors import RequestError
from modelwright.serving.answer import Answer
from modelwright.serving.opened import Named

HELP = """\
/image PATH  show a picture with the next question
/clear       forget the conversation
/save FILE   write the conversation as .json or .md
/help        this list
Ctrl-C stops an answer, Ctrl-D leaves"""


class Replies(Protocol):
    """What answers the last of what was said and shows the answer."""

    def reply(self, said: tuple[Utterance, ...]) -> Answer: ...


class Session:
    """The conversation so far, and the pictures that wait for the next question.

    Lines come from stdin, a terminal or not. A line that cannot be served is one sentence on stderr and changes
    nothing; where stdin is no terminal, the session then ends with exit status 2 after its last line.
    """

    def __init__(self, chat: Replies, model: Named, pictures: tuple[Picture, ...] = ()):
        self.chat = chat
        self.model = model
        self.said: tuple[Utterance, ...] = ()
        self.waiting = pictures
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._show,
            "/clear": self._clear,
            "/save": self._save,
            "/help": lambda _: say(HELP),
        }

    def run(self) -> int:
        """Read lines until they end; returns the exit status."""
        at_terminal = sys.stdin.isatty()
        if at_terminal:
            _edit_lines()
            say(f"{self.model.name}: ask away, /help lists the commands")
        failed = False
        while True:
            try:
                line = input("> " if at_terminal else "")
            except EOFError:
                break
            except KeyboardInterrupt:
                say("")
                continue
            try:
                self.take(line.strip())
            except RequestError as error:
                say(f"modelwright: {error}")
                failed = True
        if at_terminal:
            say("")
        return 2 if failed and not at_terminal else 0

    def take(self, line: str) -> None:
        """One line: a command, or a question to answer; nothing changes when a RequestError is raised."""
        if not line:
            return
        if line.startswith("/"):
            name, _, rest = line.partition(" ")
            if name not in self._commands:
                raise RequestError(f"there is no command {name}; there are {', '.join(self._commands)}")
            self._commands[name](rest.strip())
            return
        said = (*self.said, ask(line, self.waiting, self.model.checkpoint.reads_pictures))
        reply = self.chat.reply(said)
        self.said = (*said, Utterance("assistant", reply.text))
        self.waiting = ()
        if reply.interrupted:
            say("(stopped)")

    def _show(self, path: str) -> None:
        if not path:
            raise RequestError("/image needs the path of a picture")
        if not self.model.checkpoint.reads_pictures:
            raise refuse_pictures(self.model.name, self.model.checkpoint.family, 1)
        self.waiting += open_pictures([Path(path).expanduser()])

    def _clear(self, _: str) -> None:
        self.said, self.waiting = (), ()

    def _save(self, name: str) -> None:
        formats = {".json": as_json, ".md": as_markdown}
        path = Path(name).expanduser()
        if path.suffix.lower() not in formats:
            raise RequestError(f"/save needs a file that ends in .json or .md, got {name!r}")
        try:
            path.write_text(formats[path.suffix.lower()](self.model.name, self.said), encoding="utf-8")
        except OSError as error:
            raise RequestError(f"cannot write {path}: {error.strerror}") from error
        say(f"saved {path}")


def as_json(model: str, said: tuple[Utterance, ...]) -> str:
    """A transcript as ``{"model", "messages": [{"role", "content", "images"}]}``; images are paths."""
    messages = [
        {"role": each.role, "content": each.text, "images": [str(picture.path) for picture in each.pictures]}
        for each in said
    ]
    return json.dumps({"model": model, "messages": messages}, ensure_ascii=False, indent=2) + "\n"


def as_markdown(model: str, said: tuple[Utterance, ...]) -> str:
    """A transcript with one heading for each time that somebody spoke; pictures are linked by their paths."""
    parts = [f"# {model}"]
    for each in said:
        parts.append(f"## {each.role}")
        parts += [f"![]({picture.path})" for picture in each.pictures]
        parts.append(each.text)
    return "\n\n".join(parts) + "\n"


def _edit_lines() -> None:
    """Arrow keys and history at the prompt, where Python was built with readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
