"""`Listener`, uvicorn with httptools on sockets that are open already, with our limits and without its signals."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn

from modelwright.server.connection import Connections
from modelwright.server.settings import ServerSettings


class Listener(uvicorn.Server):
    """Serves while it is entered.

    Args:
        app: in ASGI; it is told of no lifespan.
        tls: None for HTTP without it.
        refused: told the code of each error that no request came to.
    """

    def __init__(
        self,
        settings: ServerSettings,
        app: Any,
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None = None,
        refused: Callable[[str], None] = lambda code: None,
    ):
        self.connections = Connections(settings, refused)
        config = uvicorn.Config(
            app,
            http=self.connections.protocol(),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level=logging.ERROR,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            root_path=settings.root_path,
            timeout_keep_alive=settings.keep_alive,  # pyright: ignore[reportArgumentType]  # parts of seconds, too
            timeout_graceful_shutdown=1,
        )
        config.load()
        config.ssl = tls
        super().__init__(config)
        self._sockets = list(sockets)
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        yield

    async def __aenter__(self) -> "Listener":
        self._task = asyncio.create_task(self.serve(self._sockets))
        while not self.started:
            await asyncio.sleep(0.005)
            if self._task.done():
                self._task.result()
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.should_exit = True
        if self._task is not None:
            await self._task
