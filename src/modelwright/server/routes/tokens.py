"""``POST /tokenize`` and ``/detokenize``, in vLLM's form."""

from modelwright.server.exchange import Exchange
from modelwright.server.live import Live
from modelwright.server.routes.endpoint import Endpoint
from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.errors import ApiError
from modelwright.server.wire.tokens import MOST_BYTES, DetokenizeRequest, TokenizeReply, TokenizeRequest


class Tokenize(Endpoint):
    """Text to tokens."""

    async def answer(self, exchange: Exchange) -> None:
        parts = self.parts
        request, _, headers = await self.asked(exchange, TokenizeRequest)
        with parts.admission.preparation():
            if (request.prompt is None) == (request.messages is None):
                raise ApiError(400, "invalid_value", "exactly one of prompt and messages must be given", param="prompt")
            tokens = await exchange.while_there(self._tokens(request, exchange))
        strings = None
        if request.return_token_strs:
            strings = [parts.served.tokenizer.convert_ids_to_tokens(id_) or "" for id_ in tokens]
        await exchange.reply(TokenizeReply(tokens, len(tokens), parts.served.context, strings), headers)

    async def _tokens(self, request: TokenizeRequest, exchange: Exchange) -> list[int]:
        parts = self.parts
        if request.messages is not None:
            chat = ChatRequest(
                messages=request.messages,
                tools=request.tools,
                add_generation_prompt=request.add_generation_prompt,
                continue_final_message=request.continue_final_message,
                chat_template_kwargs=request.chat_template_kwargs,
            )
            return await parts.preparation.tokens(chat, Live(exchange.record))
        text = request.prompt or ""
        if len(text.encode()) > MOST_BYTES:
            raise ApiError(400, "invalid_value", f"prompt must have at most {MOST_BYTES} bytes", param="prompt")
        return await parts.preparation.in_thread(
            parts.preparation.text_tokens, text, request.add_special_tokens is not False
        )


class Detokenize(Endpoint):
    """Tokens to text."""

    async def answer(self, exchange: Exchange) -> None:
        parts = self.parts
        request, _, headers = await self.asked(exchange, DetokenizeRequest)
        with parts.admission.preparation():
            known = len(parts.served.tokenizer)
            wrong = next((id_ for id_ in request.tokens if not 0 <= id_ < known), None)
            if wrong is not None:
                said = f"tokens must be at least 0 and below the vocabulary's {known}, got {wrong}"
                raise ApiError(400, "invalid_value", said, param="tokens")
            decode = parts.served.tokenizer.backend_tokenizer.decode
            text = await parts.preparation.in_thread(lambda: decode(request.tokens, skip_special_tokens=False))
        await exchange.reply({"prompt": text}, headers)
