"""Messages of a request to a prompt: roles, words that stay words, pictures in their places."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from modelwright.errors import RequestError
from modelwright.processing.batching import ProcessedPrompt
from modelwright.processing.plain_words import cut_marks, plainly
from modelwright.processing.special_tokens import GROUNDING_TOKENS
from modelwright.processing.templates import Rendering
from modelwright.server.constraints import Constraint
from modelwright.server.pictures import Picture, PictureSource
from modelwright.server.served import Served
from modelwright.server.tools.history import with_calls, with_instruction
from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.errors import ApiError
from modelwright.server.wire.messages import AssistantMessage, ImagePart, Message, TextPart, ToolMessage, UserMessage
from modelwright.serving.prompts import encode_messages


def picture_sources(messages: Sequence[Message]) -> list[PictureSource]:
    """Where the pictures of a conversation are to be found, in their order.

    Raises:
        ApiError: somebody shows one who may not.
    """
    found = []
    for number, message in enumerate(messages):
        for index, part in _parts(message):
            if isinstance(part, ImagePart):
                where = f"messages[{number}].content[{index}]"
                if not isinstance(message, UserMessage | ToolMessage):
                    said = f"{where} is a picture, and only messages of role user and tool may show one"
                    raise ApiError(400, "invalid_value", said, param=where)
                given = part.image_url
                url, detail = (given, "auto") if isinstance(given, str) else (given.url, given.detail)
                found.append(PictureSource(url, detail, where))
    return found


@dataclass(frozen=True)
class Printed:
    """A conversation as the model reads it.

    Attributes:
        last_picture: which of the request's pictures it shows last; None where there is none.
    """

    prompt: ProcessedPrompt
    last_picture: int | None


class Conversation:
    """A chat request as the model's prompt.

    Args:
        plain: grounding tokens in the words of messages do not act either.
        template: a chat template other than the model's.
    """

    def __init__(self, served: Served, plain: bool, template: str | None = None):
        self._served, self._template = served, template
        self._acting = GROUNDING_TOKENS if served.grounds and not plain else ()

    def prompt(self, request: ChatRequest, pictures: Sequence[Picture], constraint: Constraint, ending: str) -> Printed:
        """The tokens of a conversation.

        Args:
            pictures: those of `picture_sources`.
            constraint: what the model is told of tools.
            ending: what the last message of the user ends with; special tokens in it act.

        Raises:
            ApiError: the messages cannot be printed.
        """
        try:
            return self._prompt(request, pictures, constraint, ending)
        except RequestError as error:
            raise ApiError.of(error, param="messages") from error

    def _prompt(
        self, request: ChatRequest, pictures: Sequence[Picture], constraint: Constraint, ending: str
    ) -> Printed:
        shown = iter(pictures)
        messages = [self._message(message, shown) for message in request.messages]
        messages = with_calls(with_instruction(messages, constraint.instruction), constraint.dialect, self._plain)
        if ending:
            messages = _ended(messages, ending)
        last = messages[-1]["role"] == "assistant"
        continued, prompted = bool(request.continue_final_message), request.add_generation_prompt
        if continued and not last:
            raise ApiError(
                400,
                "invalid_value",
                "continue_final_message is true, and the last message is not the assistant's",
                param="continue_final_message",
            )
        if continued and prompted:
            said = "continue_final_message and add_generation_prompt exclude each other, and both are true"
            raise ApiError(400, "invalid_value", said, param="add_generation_prompt")
        variables = plainly(request.chat_template_kwargs or {}, self._plain)
        how = Rendering(chat_template=self._template, tools=constraint.template_tools, variables=variables)
        if self._served.reads_pictures and not how.needs_template and prompted is None:
            if last and not continued:
                messages.append({"role": "assistant", "content": ""})  # the header of an answer of its own
        else:
            prompted = not continued if prompted is None else prompted
            how = Rendering(how.chat_template, how.tools, None, how.variables, prompted, continued)
        return Printed(encode_messages(self._served.loaded, messages, how), _last_picture(messages, pictures))

    def _message(self, message: Message, pictures: Iterator[Picture]) -> dict[str, Any]:
        content = message.content
        if isinstance(content, list):
            said: Any = [self._part(part, pictures) for part in content]
        else:
            said = None if content is None else self._plain(content)
        role = message.__struct_config__.tag
        found: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": said}
        if isinstance(message, AssistantMessage):
            thought = message.reasoning_content or message.reasoning
            found |= {"reasoning_content": self._plain(thought)} if thought else {}
            if said is None and message.refusal:
                found["content"] = self._plain(message.refusal)
            if message.tool_calls:
                found["tool_calls"] = [
                    {
                        "id": self._plain(call.id),
                        "type": "function",
                        "function": {
                            "name": call.function.name,
                            "arguments": call.function.arguments,
                        },
                    }
                    for call in message.tool_calls
                ]
            elif found["content"] is None:
                found["content"] = ""
        elif isinstance(message, ToolMessage):
            found["tool_call_id"] = self._plain(message.tool_call_id)
        if message.name is not None:
            found["name"] = self._plain(message.name)
        return found

    def _part(self, part: Any, pictures: Iterator[Picture]) -> dict[str, Any]:
        if isinstance(part, ImagePart):
            return next(pictures).part
        return {"type": "text", "text": self._plain(part.text if isinstance(part, TextPart) else part.refusal)}

    def _plain(self, words: str) -> str:
        return cut_marks(words, self._served.tokenizer, self._acting)


def _last_picture(messages: Sequence[dict[str, Any]], pictures: Sequence[Picture]) -> int | None:
    """Which picture stands last in messages, whose order need not be the request's."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    places = {id(picture.image): place for place, picture in enumerate(pictures)}
    shown = (id(part.get("image")) for part in reversed(parts))
    return next((places[key] for key in shown if key in places), None)


def _parts(message: Message) -> Iterator[tuple[int, Any]]:
    if isinstance(message.content, list):
        yield from enumerate(message.content)


def _ended(messages: list[dict[str, Any]], words: str) -> list[dict[str, Any]]:
    """With `words` at the end of the user's last message, which must be the last of all."""
    last = messages[-1]
    if last["role"] != "user":
        raise ApiError(400, "invalid_value", "grounding.locate needs a last message of role user", param="grounding")
    content = last["content"]
    said = (
        [*content, {"type": "text", "text": words}] if isinstance(content, list) else f"{content or ''} {words}".strip()
    )
    return [*messages[:-1], {**last, "content": said}]
