"""An interactive session: lines from the user, answers from the model, the conversation kept between them."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from modelwright.cli.console import say
from modelwright.cli.conversation import Picture, Utterance, ask, open_pictures, refuse_pictures
from modelwright.cli.exit_status import status_of
from modelwright.cli.files import write_whole
from modelwright.cli.line_reader import LineReader
from modelwright.cli.streams import is_text
from modelwright.errors import RequestError
from modelwright.serving.answer import Answer
from modelwright.serving.names import user_path
from modelwright.serving.opened import Named

HELP = """\
/image PATH  show a picture with the next question
/clear       forget the conversation
/save FILE   write the conversation as .json or .md
/help        this list
/exit        leave; so do /quit and Ctrl-D
Tab completes commands and paths, Ctrl-C stops an answer, several pasted lines are one question"""


class Replies(Protocol):
    """What answers the last of what was said and shows the answer."""

    def reply(self, said: tuple[Utterance, ...]) -> Answer: ...


class Session:
    """The conversation so far, and the pictures that wait for the next question.

    Lines come from stdin, a terminal or not. A line that cannot be served is one sentence on stderr and changes
    nothing; where stdin is no terminal, the session then ends with exit status 2 after its last line, and with 1 where
    an answer could not be finished.
    """

    def __init__(self, chat: Replies, model: Named, pictures: tuple[Picture, ...] = ()):
        self.chat = chat
        self.model = model
        self.said: tuple[Utterance, ...] = ()
        self.waiting = pictures
        self._left = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._show,
            "/clear": self._clear,
            "/save": self._save,
            "/help": lambda _: say(HELP),
            "/exit": self._leave,
            "/quit": self._leave,
        }

    def run(self) -> int:
        """Read lines until they end; returns the exit status."""
        reader = LineReader(list(self._commands), ("/image", "/save"))
        if reader.at_terminal:
            say(f"{self.model.name}: ask away, /help lists the commands")
        statuses: set[int] = set()
        while not self._left:
            try:
                line = reader.read()
            except EOFError:
                if reader.at_terminal:
                    say("")
                break
            except KeyboardInterrupt:
                say("")
                continue
            except OSError as error:
                raise RequestError(f"stdin cannot be read: {error.strerror}") from error
            try:
                self.take(line)
            except RequestError as error:
                say(f"modelwright: {error}")
                statuses.add(status_of(error))
        reader.close()
        return min(statuses, default=0) if not reader.at_terminal else 0

    def take(self, line: str) -> None:
        """A command, with what was pasted after it, or a question; nothing changes when a RequestError is raised."""
        if not line.strip():
            return
        if not is_text(line):
            raise RequestError("the line is no text in UTF-8")
        if line.lstrip().startswith("/"):
            command, _, below = line.lstrip().partition("\n")
            name, _, rest = command.partition(" ")
            if name not in self._commands:
                raise RequestError(f"there is no command {name}; there are {', '.join(self._commands)}")
            self._commands[name](rest.strip())
            self.take(below)
            return
        said = (*self.said, ask(line, self.waiting, self.model.checkpoint.reads_pictures))
        reply = self.chat.reply(said)
        self.said = (*said, Utterance("assistant", reply.said or reply.text))
        self.waiting = ()
        if reply.interrupted:
            say("(stopped)")

    def _show(self, text: str) -> None:
        if not text:
            raise RequestError("/image needs the path of a picture")
        if not self.model.checkpoint.reads_pictures:
            raise refuse_pictures(self.model.name, self.model.checkpoint.family, 1)
        opened = open_pictures(typed_paths(text))
        self.waiting += opened
        for picture in opened:
            width, height = picture.image.size
            say(f"{picture.path}: {width} x {height} pixels, shown with the next question")

    def _leave(self, _: str) -> None:
        self._left = True

    def _clear(self, _: str) -> None:
        self.said, self.waiting = (), ()
        say("the conversation is forgotten")

    def _save(self, name: str) -> None:
        formats = {".json": as_json, ".md": as_markdown}
        path = user_path(name)
        if path.suffix.lower() not in formats:
            raise RequestError(f"/save needs a file that ends in .json or .md, got {name!r}")
        said = formats[path.suffix.lower()](self.model.name, self.said)
        write_whole(path, said.encode("utf-8", "replace"), f"/save {path}")
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


def typed_paths(text: str) -> list[Path]:
    """The files that a line names: as it stands, quoted, escaped, or dropped on a terminal, several apart by blanks."""
    whole = user_path(_from_url(text))
    if whole.exists():
        return [whole]
    try:
        paths = [user_path(_from_url(part)) for part in shlex.split(text)]
    except ValueError:  # a quote that does not end
        return [whole]
    return paths if len(paths) == 1 or all(path.exists() for path in paths) else [whole]


def _from_url(text: str) -> str:
    """The path of a ``file:`` URL; anything else as it is."""
    url = urlsplit(text)
    return unquote(url.path) if url.scheme == "file" else text
