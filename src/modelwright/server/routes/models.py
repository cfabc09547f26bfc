"""``GET /v1/models`` and what else is told of the server: its version, what it is doing."""

from typing import Any

from modelwright.server.exchange import Exchange
from modelwright.server.field_schemas import Bounds
from modelwright.server.openapi import openapi
from modelwright.server.routes.endpoint import Endpoint
from modelwright.server.served import VERSION
from modelwright.server.wire.errors import ApiError


class Models(Endpoint):
    """The list of models, which is one model by its names."""

    async def answer(self, exchange: Exchange) -> None:
        served = self.parts.served
        await exchange.reply({"object": "list", "data": [self.card(name) for name in served.names]})

    def card(self, name: str) -> dict[str, Any]:
        served = self.parts.served
        features = ["grounding"] * served.grounds + ["tools"]
        return {
            "id": name,
            "object": "model",
            "created": served.created,
            "owned_by": "modelwright",
            "root": served.name,
            "parent": None,
            "max_model_len": served.context,
            "architecture": {"input_modalities": ["text", "image"] if served.reads_pictures else ["text"]},
            "features": features,
        }


class Model(Models):
    """One of them."""

    async def answer(self, exchange: Exchange) -> None:
        name = exchange.scope["path_params"]["model"]
        if name not in self.parts.served.names:
            served = ", ".join(self.parts.served.names)
            raise ApiError(
                404, "model_not_found", f"{name[:200]!r} is not served here; there is {served}", param="model"
            )
        await exchange.reply(self.card(name))


class Version(Endpoint):
    """Of the package."""

    async def answer(self, exchange: Exchange) -> None:
        await exchange.reply({"version": VERSION})


class OpenApi(Endpoint):
    """The description of all paths."""

    async def answer(self, exchange: Exchange) -> None:
        served = self.parts.served
        vocabulary = served.loaded.model.config.get_text_config().vocab_size
        await exchange.reply(openapi(Bounds(self.parts.settings, vocabulary, len(served.tokenizer))))


class Status(Endpoint):
    """The caller's requests that are being answered; with scope admin everybody's. No text is told."""

    async def answer(self, exchange: Exchange) -> None:
        key, engine = exchange.key, self.parts.served.engine
        seen = self.parts.live.seen_by(None if "admin" in key.scopes else key.name)
        counts = {"waiting": engine.waiting, "running": engine.running, "queued_tokens": engine.queued_tokens}
        await exchange.reply({"object": "status", **counts, "requests": [each.status() for each in seen]})
