"""Chat templates: which of a tokenizer's is meant, what it reads, and what it prints of messages; no model is known."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta, nodes

from modelwright.errors import RequestError
from modelwright.processing.contents import as_printed

ALWAYS_GIVEN = ("messages", "tools", "documents", "add_generation_prompt")
"""What every template is given, so that it can be no variable of the caller's."""
_GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")
"""Marks of the assistant's words, which transformers knows and jinja2 does not."""


@dataclass(frozen=True)
class Rendering:
    """How messages become text, as far as the caller says.

    Attributes:
        chat_template: a Jinja template, or the name of one of the tokenizer's; None for the tokenizer's own.
        tools, documents: what templates for tools and for retrieval print.
        variables: further variables of the template, such as ``enable_thinking``.
        add_generation_prompt: whether the assistant's header follows; None where the messages do not end with the
            assistant's words.
        continue_final_message: whether the last message is left open; None where it is the assistant's.
    """

    chat_template: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @property
    def needs_template(self) -> bool:
        """Whether only a template can do what is asked."""
        asked = self.chat_template or self.tools or self.documents or self.variables
        return bool(asked) or self.add_generation_prompt is not None or self.continue_final_message is not None


def pick_template(own: str | Mapping[str, str] | None, asked: str | None, with_tools: bool) -> str | None:
    """The template to print with; None where there is none.

    Args:
        own: the tokenizer's, one or several by their names.
        asked: a template, or the name of one of the tokenizer's.
        with_tools: tools are given, for which a template called ``tool_use`` is meant.

    Raises:
        RequestError: a name that none has, or several templates of which none is called ``default``.
    """
    named = own if isinstance(own, Mapping) else {} if own is None else {"default": own}
    if asked is not None:
        if asked in named:
            return named[asked]
        if "{" not in asked:
            near = difflib.get_close_matches(asked, named, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise RequestError(
                f"chat_template {asked!r} is no template, and none is called so (there are {_listed(named)}){hint}",
                field="chat_template",
            )
        return asked
    if with_tools and "tool_use" in named:
        return named["tool_use"]
    if named and "default" not in named:
        raise RequestError(
            f"chat_template must name one of several templates, none of which is called default: {_listed(named)}",
            field="chat_template",
        )
    return named.get("default")


def render(
    tokenizer: Any,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    how: Rendering,
    image_token: str | None = None,
) -> str:
    """What `template` prints of `messages`, by transformers' own rules for templates.

    Messages that end with the assistant's words are left open, so that the model goes on with them. Contents are given
    as texts or as parts, whichever the template prints (`contents`); `image_token` stands for pictures in texts.

    Raises:
        RequestError: the template is no Jinja, does not read a variable that is given, or cannot print the messages.
    """
    check_variables(template, how.variables)
    for name, given in (("tools", how.tools), ("documents", how.documents)):
        if given and not reads(template, name):
            raise RequestError(f"{name} are given, and the chat template does not read them", field=name)
    continued = how.continue_final_message
    if continued is None:
        continued = not how.add_generation_prompt and messages[-1]["role"] in ("assistant", "<|Assistant|>")
    prompted = not continued if how.add_generation_prompt is None else how.add_generation_prompt
    if continued and prompted:
        raise RequestError("continue_final_message and add_generation_prompt exclude each other, and both are true")

    def show(messages: Sequence[Mapping[str, Any]]) -> str:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=None if how.tools is None else list(how.tools),
            documents=None if how.documents is None else list(how.documents),
            chat_template=template,
            add_generation_prompt=prompted,
            continue_final_message=continued,
            tokenize=False,
            **how.variables,
        )

    if _reads_parts(template) or any(isinstance(message.get("content"), list) for message in messages):
        messages = as_printed(messages, show, image_token)
    try:
        return show(messages)
    except Exception as error:  # a template may raise anything
        raise RequestError(f"the chat template cannot print these messages: {error}") from error


def turn_end(tokenizer: Any, template: str) -> int | None:
    """The token that `template` prints behind an answer's words, blanks aside: where a model's turn ends.

    None where it prints a text there, which no single token ends, or cannot print an answer to a question.
    """
    words = "zq0qz"
    asked = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": words}]
    closed = Rendering(add_generation_prompt=False, continue_final_message=False)
    try:
        _, printed, after = render(tokenizer, template, asked, closed).rpartition(words)
    except RequestError:
        return None
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder() if printed else {}
    after = after.lstrip()
    found = [id_ for id_, token in added.items() if token.content.strip() and after.startswith(token.content)]
    return max(found, key=lambda id_: len(added[id_].content), default=None)


def turn_ends(tokenizer: Any, familys: str | None, asked: str | None = None) -> tuple[int, ...]:
    """The token at which an answer ends by the template that prints conversations; none of many.

    Publishers leave it out of ``generation_config.json``, and whoever trains answers with a template of their own
    teaches it.

    Args:
        familys: the template where the tokenizer has none.
        asked: a template instead of the tokenizer's, or the name of one of its.
    """
    try:
        template = pick_template(tokenizer.chat_template, asked, with_tools=False) or familys
    except RequestError:
        return ()
    end = None if template is None else turn_end(tokenizer, template)
    return () if end is None else (end,)


def check_variables(template: str, variables: Mapping[str, Any]) -> None:
    """Raise a RequestError unless `template` is Jinja and reads each of `variables`."""
    names = _what_it_reads(template)[0]
    for name in variables:
        if name in ALWAYS_GIVEN:
            said = f"chat_template_kwargs must not hold {name!r}, which every template is given"
            raise RequestError(said, field="chat_template_kwargs")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            said = f"chat_template_kwargs holds {name!r}, which the chat template does not read{hint}"
            raise RequestError(said, field="chat_template_kwargs")


def variables_of(template: str) -> frozenset[str]:
    """The variables that a template reads, less what every template is given."""
    return _what_it_reads(template)[0] - {*ALWAYS_GIVEN}


def reads(template: str, name: str) -> bool:
    """Whether a template reads a variable, such as ``tools``."""
    return name in _what_it_reads(template)[0]


def words_in(template: str) -> frozenset[str]:
    """The texts that a template compares or prints as literals, among them the roles that it knows."""
    return _what_it_reads(template)[1]


def _reads_parts(template: str) -> bool:
    """Whether a template names the text of a part, without which it can print none."""
    return _what_it_reads(template)[2]


@lru_cache(8)
def _what_it_reads(template: str) -> tuple[frozenset[str], frozenset[str], bool]:
    """The variables and the literals of a template, and whether it names ``text``."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(_GENERATION.sub("", template))
    except jinja2.TemplateSyntaxError as error:
        raise RequestError(f"the chat template is no Jinja: line {error.lineno}: {error.message}") from error
    words = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    names_text = "text" in words or any(node.attr == "text" for node in tree.find_all(nodes.Getattr))
    return frozenset(meta.find_undeclared_variables(tree)), frozenset(words), names_text


def _listed(names: Mapping[str, str]) -> str:
    return ", ".join(sorted(names)) or "none"
