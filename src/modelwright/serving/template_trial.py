"""A chat template tried on a conversation before anybody is served: in a process of its own, in bounded time and room.

A template is a program, and it comes with the weights. transformers runs it in a sandbox of Jinja's, which keeps it
from Python, and not from looping or printing without end.
"""

import json
import subprocess
import sys

from modelwright.errors import CheckpointError

SECONDS = 1.0
"""Of processor time that a template may take for a few messages."""
MOST = 2**20
"""Characters that it may print of them."""
_MEMORY = 2**30
_TRIAL = """
import json, resource, sys
seconds, memory, most = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
from datetime import datetime
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

class Refused(Exception):
    pass

def refuse(message):
    raise Refused(message)

class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)

environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
asked = json.load(sys.stdin)
printed = 0
try:
    for piece in environment.from_string(asked.pop("template")).stream(**asked):
        printed += len(piece)
        if printed > most:
            sys.exit(3)
except Refused:
    pass
except (jinja2.exceptions.SecurityError, OverflowError, MemoryError) as error:
    print(type(error).__name__, str(error)[:200])
    sys.exit(4)
except Exception:
    pass
"""


def try_template(template: str, marks: dict[str, str | None]) -> None:
    """Print a short conversation, with a tool and without, by a template that nobody knows.

    What a template refuses by itself, or cannot print of these messages, is its own affair.

    Args:
        marks: ``bos_token`` and the like, which templates print.

    Raises:
        CheckpointError: it took more than `SECONDS`, printed more than `MOST`, or tried to leave the sandbox.
    """
    messages = [
        {"role": "system", "content": "You answer."},
        {"role": "user", "content": "Hello! " * 10},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "How are you?"},
    ]
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    asked = {"template": template, "messages": messages, "tools": None, "add_generation_prompt": True, **marks}
    for each in (asked, asked | {"tools": [tool]}):
        _try(json.dumps(each).encode())


def _try(asked: bytes) -> None:
    limits = json.dumps([int(SECONDS) + 1, _MEMORY, MOST])
    command = [sys.executable, "-I", "-S", "-c", _with_paths(), limits]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, timeout=30 * SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"the chat template takes more than {SECONDS:g} s to print four messages") from error
    if done.returncode == 3:
        raise CheckpointError(f"the chat template prints more than {MOST} characters of four messages")
    if done.returncode == 4:
        said = done.stdout.decode("utf-8", "replace").strip()
        raise CheckpointError(f"the chat template does what no template may: {said}")
    if done.returncode < 0:
        raise CheckpointError(f"the chat template takes more than {SECONDS:g} s to print four messages")


def _with_paths() -> str:
    """The trial, which finds Jinja where this process found it, and imports nothing of anybody's site."""
    return f"import sys\nsys.path = {sys.path!r}\n{_TRIAL}"
