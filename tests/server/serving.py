"""A server in process, with its guard in front and an engine of its own behind."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from modelwright.engine.async_engine import AsyncEngine
from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.server.access_log import AccessLog
from modelwright.server.admission import on_a_thread
from modelwright.server.app import app_of, make_parts
from modelwright.server.auth import Keys
from modelwright.server.guard import Guard
from modelwright.server.health import Condition, Health
from modelwright.server.metrics import Metrics
from modelwright.server.routes.endpoint import Parts
from modelwright.server.served import Served
from modelwright.server.settings import ServerSettings
from modelwright.serving.load import Loaded
from tests.server.asgi import Client

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


class Running:
    """What `running` gives.

    Attributes:
        lines: the access log.
    """

    def __init__(self, client: Client, parts: Parts, guarded: Guard, lines: list[str]):
        self.client, self.parts, self.guarded, self.lines = client, parts, guarded, lines

    @property
    def engine(self) -> AsyncEngine:
        return self.parts.served.engine

    def counted(self, name: str, **labels: str) -> float:
        """The value of a metric."""
        from prometheus_client.parser import text_string_to_metric_families

        page = self.parts.metrics.page()[0].decode()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name == f"modelwright:{name}" and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0


@asynccontextmanager
async def running(
    loaded: Loaded,
    settings: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    name: str = "tiny",
    engine: Any = None,
    traces: Any = None,
) -> AsyncIterator[Running]:
    """A server of a model.

    Args:
        settings, limits: fields of `ServerSettings` and `EngineConfig`.
        engine: made by default.
        traces: what is told of each request that has ended.
    """
    set_to = ServerSettings(**(settings or {}))
    made = engine or Engine(loaded.model, EngineConfig(**{"num_pages": 512, **(limits or {})}), loaded.tokenizer)
    lines: list[str] = []
    async with on_a_thread(made, set_to) as serving:
        served, metrics = Served(loaded, serving, made.context, made.config.max_batch, (name,)), Metrics(set_to, name)
        serving.watch_steps(metrics.stepped)
        health = Health(set_to, state=Condition.SERVING, engine=serving)
        parts = make_parts(served, set_to, metrics)
        guarded = Guard(set_to, Keys(set_to, {}), health, metrics, AccessLog(set_to, lines.append), traces)
        guarded.app = app_of(parts)
        yield Running(Client(guarded), parts, guarded, lines)
