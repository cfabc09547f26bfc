"""Questions about Python's own documentation, each with the one JSON object that answers it, computed from its text.

A question is an excerpt of ``pydoc_data.topics``, which writes code in double quotes. Some topics are held out; what
stands in one of them is never learned, even where other topics repeat it, as they often do.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

INSTRUCTION = (
    'Answer in JSON: "names", what stands in double quotes, each once; "count" of names; "error", the first name that '
    'ends in Error, Exception or Warning, or null; "negated", whether the text says not.'
)
HELD_OUT = 0.25
"""The share of topics that is held out."""
SHORTEST, LONGEST, MOST_NAMES = 60, 300, 6
_QUOTED = re.compile(r'"([^"]+)"')
_ERROR = re.compile(r"(Error|Exception|Warning)$")
_SENTENCE = re.compile(r'(?<=[.:;])\s+(?=[A-Z"])')


def answer_of(text: str) -> dict[str, Any]:
    """What is true of an excerpt."""
    names = list(dict.fromkeys(_QUOTED.findall(text)))
    error = next((name for name in names if _ERROR.search(name)), None)
    return {"names": names, "count": len(names), "error": error, "negated": re.search(r"\bnot\b", text) is not None}


def excerpts(topic: str) -> Iterator[str]:
    """The sentences of a topic, or two where one is short, that name code and are neither grammar nor a listing."""
    for paragraph in topic.split("\n\n"):
        if "::=" in paragraph or ">>>" in paragraph:
            continue
        sentences = _SENTENCE.split(" ".join(paragraph.split()))
        while sentences:
            text = sentences.pop(0)
            if len(text) < SHORTEST and sentences:
                text += " " + sentences.pop(0)
            if _is_fit(text):
                yield text


def _is_fit(text: str) -> bool:
    quoted = _QUOTED.findall(text)
    return (
        SHORTEST <= len(text) <= LONGEST
        and re.match(r'[A-Z"].*[.:;]$', text) is not None
        and not set("\\|") & set(text)
        and text.count('"') == 2 * len(quoted)
        and all(name == name.strip() and len(name) < 40 for name in quoted)
        and 1 <= len(set(quoted)) <= MOST_NAMES
    )


def is_held_out(topic: str) -> bool:
    """Whether a topic is, by the hash of its name: the same one in every version of Python."""
    return int.from_bytes(hashlib.sha256(f"topic {topic}".encode()).digest()[:4], "big") < HELD_OUT * 2**32


def split(topics: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The excerpts to learn from and those held out, none of them in both, in the order of their hashes."""
    held_out = {text for name, topic in topics.items() if is_held_out(name) for text in excerpts(topic)}
    rest = {text for name, topic in topics.items() if not is_held_out(name) for text in excerpts(topic)}
    return _shuffled(rest - held_out), _shuffled(held_out)


def _shuffled(texts: set[str]) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def question(text: str) -> list[dict[str, str]]:
    """The messages before the answer."""
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]


def write_rows(path: Path, texts: Sequence[str]) -> None:
    """A chat for each excerpt, as ``data.train`` and ``data.eval`` read it."""
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            answer = {"role": "assistant", "content": json.dumps(answer_of(text), ensure_ascii=False)}
            file.write(json.dumps({"messages": [*question(text), answer]}, ensure_ascii=False) + "\n")
