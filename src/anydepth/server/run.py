"""Run the server: listen, and on SIGTERM finish what is under way."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from anydepth.server.engine.engine import Engine, EngineError
from anydepth.server.http.app import build_app
from anydepth.server.resources import opening
from anydepth.server.service import Service
from anydepth.server.telemetry.logs import set_up_logging
from anydepth.settings import Settings

logger = logging.getLogger(__name__)

_EVERYWHERE = ("0.0.0.0", "::")

LAST_WORDS = 5
"""Seconds that connections have to take the end of an answer that was aborted."""


def serve(load: Callable[[], Engine], settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; returns once everything is finished or the time of grace is over.

    Args:
        load: Gives the engine. It is called once everything else that can fail has not.
        settings: What the operator decided.

    Raises:
        AnydepthError: Something cannot be opened (see `opening`), or loaded; nothing has been served then.
    """
    set_up_logging(settings.logging)  # first: what opening the audit trail finds and mends is logged as well
    with opening(settings) as opened:
        engine = load()
        service = Service(engine, settings, opened.audit)
        app = build_app(service, opened.keys)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.limits.grace_seconds) + LAST_WORDS,
        lifespan="on",
    )
    try:
        _Server(config, service).run(opened.sockets)
    except SystemExit as error:  # uvicorn's exit code for it, 3, says of ours that an answer was halted
        raise EngineError("the server could not start; its log says why") from error


def where_to_go(settings: Settings, port: int, model: str) -> str:
    """Where the console and the API are, as lines for a person at a terminal.

    Args:
        settings: What the operator decided.
        port: The port that the server listens on.
        model: Name of the model that clients use.
    """
    host = settings.http.host
    host = "127.0.0.1" if host in _EVERYWHERE else f"[{host}]" if ":" in host else host
    console = f"http://{host}:{port}/" if settings.console.enabled else "switched off by [console] enabled"
    return f"Console  {console}\nAPI      http://{host}:{port}/v1 (model {model})\n"


class _Server(uvicorn.Server):
    """Uvicorn's server; a signal makes the service drain, and the process then ends with exit code 0."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to take connections."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            addresses = [each.getsockname() for server in self.servers for each in server.sockets]
            model, settings = self._service.engine.facts.model, self._service.settings
            if sys.stderr.isatty():
                sys.stderr.write(where_to_go(settings, addresses[0][1], model))
            else:
                logger.info("listening", extra={"addresses": addresses, "model": model})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no new connections, and give the answers under way the time of grace; a second SIGINT ends at once."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._service.draining:
            return
        self._service.draining = True
        grace = self._service.settings.limits.grace_seconds
        logger.info("draining", extra={"grace_seconds": grace, "live": self._service.engine.stats.live})
        asyncio.get_running_loop().call_later(grace, self._service.engine.abort)
