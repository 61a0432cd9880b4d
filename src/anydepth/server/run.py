"""Run the server: listen, and on SIGTERM finish what is under way."""

import asyncio
import logging
import signal
from types import FrameType

import uvicorn

from anydepth.audit.trail import open_audit
from anydepth.server.app import build_app
from anydepth.server.engine import Engine
from anydepth.server.logs import set_up_logging
from anydepth.server.service import Service
from anydepth.settings import Settings

logger = logging.getLogger(__name__)

LAST_WORDS = 5
"""Seconds that connections have to take the end of an answer that was aborted."""


def serve(engine: Engine, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; returns once everything is finished or the time of grace is over."""
    set_up_logging(settings.logging)
    service = Service(engine, settings, open_audit(settings.audit))
    config = uvicorn.Config(
        build_app(service),
        host=settings.http.host,
        port=settings.http.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.limits.grace_seconds) + LAST_WORDS,
        lifespan="on",
    )
    _Server(config, service).run()


class _Server(uvicorn.Server):
    """Uvicorn's server; a signal makes the service drain, and the process then ends with exit code 0."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)  # pyright: ignore[reportArgumentType]
        if self.started:
            addresses = [socket.getsockname() for server in self.servers for socket in server.sockets]
            logger.info("listening", extra={"addresses": addresses, "model": self._service.engine.facts.model})

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
