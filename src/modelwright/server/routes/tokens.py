"""``POST /tokenize`` and ``/detokenize``, in vLLM's form."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from modelwright.server.exchange import Exchange
from modelwright.server.json_body import as_struct
from modelwright.server.live import Live
from modelwright.server.routes.endpoint import Endpoint
from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.errors import ApiError

MOST_BYTES = 2**20
MOST_TOKENS = 2**18


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A text or a conversation whose tokens are asked for."""

    model: str = ""
    prompt: str | None = None
    messages: list[Any] | None = None
    tools: list[Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeReply(msgspec.Struct):
    """The tokens, a picture's as so many of the placeholder's id."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Token ids whose text is asked for."""

    model: str = ""
    tokens: Annotated[list[int], Meta(max_length=MOST_TOKENS)]


class Tokenize(Endpoint):
    """Text to tokens."""

    async def answer(self, exchange: Exchange) -> None:
        parts = self.parts
        parts.admission.check()
        body = await exchange.json()
        with parts.admission.preparation():
            request = await exchange.read(body, TokenizeRequest)
            parts.served.check_name(request.model)
            if (request.prompt is None) == (request.messages is None):
                raise ApiError(400, "invalid_value", "exactly one of prompt and messages must be given", param="prompt")
            tokens = await exchange.while_there(self._tokens(request, body, exchange))
        strings = None
        if request.return_token_strs:
            strings = [parts.served.tokenizer.convert_ids_to_tokens(id_) or "" for id_ in tokens]
        await exchange.reply(TokenizeReply(tokens, len(tokens), parts.served.context, strings))

    async def _tokens(self, request: TokenizeRequest, body: dict[str, Any], exchange: Exchange) -> list[int]:
        parts = self.parts
        if request.prompt is None:
            names = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")
            asked = {name: body[name] for name in names if body.get(name) is not None}
            return await parts.preparation.tokens(as_struct(asked, ChatRequest), Live(exchange.record))
        text = request.prompt
        if len(text.encode()) > MOST_BYTES:
            raise ApiError(400, "invalid_value", f"prompt must have at most {MOST_BYTES} bytes", param="prompt")
        return await parts.preparation.in_thread(
            parts.preparation.text_tokens, text, request.add_special_tokens is not False
        )


class Detokenize(Endpoint):
    """Tokens to text."""

    async def answer(self, exchange: Exchange) -> None:
        parts = self.parts
        parts.admission.check()
        body = await exchange.json()
        with parts.admission.preparation():
            request = await exchange.read(body, DetokenizeRequest)
            parts.served.check_name(request.model)
            known = len(parts.served.tokenizer)
            wrong = next((id_ for id_ in request.tokens if not 0 <= id_ < known), None)
            if wrong is not None:
                said = f"tokens must be at least 0 and below the vocabulary's {known}, got {wrong}"
                raise ApiError(400, "invalid_value", said, param="tokens")
            decode = parts.served.tokenizer.backend_tokenizer.decode
            text = await parts.preparation.in_thread(lambda: decode(request.tokens, skip_special_tokens=False))
        await exchange.reply({"prompt": text})
