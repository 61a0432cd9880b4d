"""Open what a server needs besides its model: what cannot be had is said before the model is loaded."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from anydepth.audit.trail import Audit, open_audit
from anydepth.detectors import LinearProbe
from anydepth.errors import ConfigError
from anydepth.server.http.app import api_keys
from anydepth.settings import Settings
from anydepth.templates.call_formats import choose_format

_BACKLOG = 2048
"""Connections that may wait; uvicorn's own figure."""

_ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""What a machine without IPv6 says of the second address of `localhost`."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a server needs besides its model.

    Attributes:
        sockets: Where it listens. Connections wait there until the model has been loaded.
        audit: The audit trail.
        keys: The API keys.
    """

    sockets: list[socket.socket]
    audit: Audit
    keys: list[str]


@contextmanager
def opening(settings: Settings) -> Iterator[Opened]:
    """Open everything; it is closed again if the block fails, and else belongs to the caller.

    Raises:
        ConfigError: The address cannot be listened at, the keys cannot be read, or there is no such tool format.
        AuditError: The audit trail cannot be written.
        ProbeError: The probe cannot be read.
    """
    with ExitStack() as stack:
        yield _open(settings, stack)
        stack.pop_all()


def check_place(settings: Settings, *, address: bool = True) -> None:
    """Raise what `opening` would, and leave nothing open; `address` is False where the settings do not choose it."""
    with ExitStack() as stack:
        _open(settings, stack, address=address)


def _open(settings: Settings, stack: ExitStack, *, address: bool = True) -> Opened:
    choose_format(settings.tools.format, "")
    if settings.guard.probe is not None:
        LinearProbe.load(Path(settings.guard.probe))
    keys = api_keys(settings.http)
    sockets = listening(settings.http.host, settings.http.port) if address else []
    for each in sockets:
        stack.enter_context(each)
    audit = open_audit(settings.audit)
    stack.callback(audit.close)
    return Opened(sockets, audit, keys)


def listening(host: str, port: int) -> list[socket.socket]:
    """Listening sockets, one for each address that `host` stands for; an empty text is every address of the machine.

    They listen at once: of two sockets that are only bound, both could claim the port.

    Raises:
        ConfigError: The port is in use, may not be used, or `host` is no address of this machine.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"host {host!r} cannot be found ({reason}); give an address of this machine") from error
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, address in dict.fromkeys((each[0], each[4]) for each in found):
        if sockets and not port:  # the same free port for all of them
            address = (address[0], sockets[0].getsockname()[1], *address[2:])
        try:
            sockets.append(socket.create_server(address, family=family, backlog=_BACKLOG))
        except OSError as error:
            if error.errno in _ABSENT:
                absent = error
                continue
            for each in sockets:
                each.close()
            raise ConfigError(_reason(error, host, port)) from error
    if not sockets:
        raise ConfigError(
            f"host {host!r} is no address of this machine; give one, e.g. --host 127.0.0.1, or 0.0.0.0 for all"
        ) from absent
    return sockets


def _reason(error: OSError, host: str, port: int) -> str:
    where = f"port {port} of {host or 'this machine'}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use; stop what listens there, or choose another with --port or [http] port"
    if error.errno == errno.EACCES:
        return f"{where} may not be used by this user; choose one of 1024 or above with --port or [http] port"
    return f"{where} cannot be listened at ({error.strerror or error}); choose another with --host and --port"
