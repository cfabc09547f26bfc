"""What an answer must keep to: ``response_format``, ``structured_outputs``, tools and boxes, as one guide."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from modelwright.engine.guide import schema_fault
from modelwright.engine.params import Guide
from modelwright.engine.tokenizer import Tokenizer
from modelwright.errors import GuideError
from modelwright.processing.plain_words import cut_marks, plainly
from modelwright.server.events import Reader
from modelwright.server.forms import Form, read_form, refusal
from modelwright.server.tools.dialects import Dialect, dialect_of
from modelwright.server.tools.grammar import form_or_calls, only_calls, text_or_calls
from modelwright.server.tools.history import instruction_for
from modelwright.server.tools.reader import CallReader
from modelwright.server.tools.request import ToolRequest, read_tools
from modelwright.server.wire.errors import ApiError

_MARKS = ("<|grounding|>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>")
"""Special tokens that may stand in free text: without them, a model that may call tools could not ground."""


@dataclass(frozen=True)
class Guiding:
    """What guides depend on besides a request: made once for a served model.

    Attributes:
        dialect: how the model writes calls.
        tokens: its special tokens.
        timeout: seconds in which a guide must be compiled.
        plain: makes of a text one whose special tokens do not act: what is said of tools is text.
    """

    dialect: Dialect
    tokens: Mapping[str, int]
    timeout: float = 5.0
    plain: Callable[[str], str] = str

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: object, tool_format: str = "auto", timeout: float = 5.0) -> Self:
        """For a model with this tokenizer and chat template (a text, several by name, or None).

        Raises:
            ConfigError: ``tool_format`` is none that there is, or does not fit the tokenizer.
        """
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        tokens = {token.content: id_ for id_, token in added.items() if token.special}
        dialect = dialect_of(template, tokenizer.get_vocab(), tool_format)
        return cls(dialect, tokens, timeout, partial(cut_marks, tokenizer=tokenizer))

    @property
    def marks(self) -> dict[str, int]:
        return {mark: self.tokens[mark] for mark in _MARKS if mark in self.tokens}


@dataclass(frozen=True)
class Constraint:
    """What a request's answers must keep to, and how the model is told.

    Attributes:
        guide: for the engine; None where the answer is free.
        tools: those the request brings and what may be called.
        template_tools: what the chat template is given as ``tools``.
        instruction: what the system turn ends with, where the template does not print tools.
        keeps_special_tokens: the reader must see special tokens: ``skip_special_tokens`` must be False.
        form: what the text of an answer must be, if anything.
    """

    guide: Guide | None
    tools: ToolRequest
    dialect: Dialect
    template_tools: list[dict[str, Any]] | None
    instruction: str | None
    keeps_special_tokens: bool
    form: Form | None = None

    @property
    def leaves_text_free(self) -> bool:
        """Whether an answer may begin with any text, such as thoughts."""
        return self.form is None and not self.tools.must

    def refusal(self, error: GuideError) -> ApiError:
        """What the client is told where the guide cannot be followed: which field it is, and llguidance's sentence."""
        for place, tool in enumerate(self.tools.shown):
            fault = "" if error.too_complex or tool not in self.tools.callable else schema_fault(tool.schema)
            if fault:
                return refusal(GuideError(fault), f"tools[{place}].function.parameters")
        return refusal(error, "tools" if self.form is None else self.form.param)

    def reader(self) -> Reader | None:
        """One for each choice; None where nothing can be called."""
        names = [tool.name for tool in self.tools.callable]
        return CallReader(self.dialect, names) if names else None


def read_constraint(fields: Mapping[str, Any], guiding: Guiding) -> Constraint:
    """The constraint of a request.

    Args:
        fields: ``response_format``, ``structured_outputs``, ``tools``, ``tool_choice``, ``parallel_tool_calls`` as they
            came, and ``grounding`` as an object; what is None or missing was not given.

    Raises:
        ApiError: 400 invalid_value, invalid_schema, schema_too_complex or unsupported_parameter.
    """
    tools = read_tools(fields.get("tools"), fields.get("tool_choice"), fields.get("parallel_tool_calls"))
    form = read_form(fields.get("response_format"), fields.get("structured_outputs"), guiding.marks)
    written = _written(tools, form, guiding)
    boxes = bool((fields.get("grounding") or {}).get("constrain"))
    if boxes:
        written["boxes"] = True
    if written:
        written |= {"stops": form is None and not tools.must, "timeout": guiding.timeout}
    dialect = guiding.dialect
    shown = [plainly(tool.given, guiding.plain) for tool in tools.shown] if dialect.prints_tools else []
    return Constraint(
        Guide(**written) if written else None,
        tools,
        dialect,
        shown or None,
        instruction_for(dialect, tools.shown, guiding.plain),
        bool(tools.callable) and any(part in guiding.tokens for part in dialect.tokens),
        form,
    )


def _written(tools: ToolRequest, form: Form | None, guiding: Guiding) -> dict[str, Any]:
    """The fields of the guide without boxes."""
    if not tools.callable:
        return {} if form is None else {form.kind: form.text}
    asked = (guiding.dialect, tools.callable, tools.several, guiding.tokens)
    if tools.must:
        return {"grammar": only_calls(*asked)}
    if form is None:
        return {"grammar": text_or_calls(*asked, guiding.marks.values())}
    if form.term is None:
        raise ApiError(
            400,
            "unsupported_parameter",
            f"{form.param} cannot stand beside tools that may be called or not: set tool_choice to none or required, "
            "or ask for a schema, an expression or a choice",
            param=form.param,
        )
    return {"grammar": form_or_calls(*asked, form.term)}
