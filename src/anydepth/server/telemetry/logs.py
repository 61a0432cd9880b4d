"""Log as JSON lines, or as plain lines on a terminal, without the text of prompts or answers."""

import logging
import sys
import traceback
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from anydepth.settings import LoggingTable

_FIELDS = "%(asctime)s %(levelname)s %(name)s %(message)s"
_TEXTUAL = ("anydepth.driver",)
"""Loggers that quote the errors of detectors, which may quote the answer."""


_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "anthropic")
"""Loggers of the clients of an upstream: below a warning they quote requests and headers."""

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""Attributes of a log record that say nothing more: what every one has, and a second form of uvicorn's messages."""


class _Plain(logging.Formatter):
    """Time, level and message, then what the record has besides, as NAME=VALUE.

    Names with a leading underscore are left out, as `JsonFormatter` leaves them out: libraries keep marks of their own
    there (Ray gives every record of the process a `_ray_timestamp_ns`).
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  a method of logging.Formatter
        """The line, without what an exception adds to it."""
        more = (f"{name}={value}" for name, value in vars(record).items() if name not in _OWN and name[0] != "_")
        return " ".join((super().formatMessage(record), *more))


class _WithoutText(logging.Formatter):
    """Leaves the message of an exception out: it may quote what was being worked on."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  a method of logging.Formatter
        """Kind and place of the exception."""
        kind, _, trace = ei
        return f"{getattr(kind, '__name__', kind)} at " + " < ".join(
            f"{frame.filename}:{frame.lineno}" for frame in reversed(traceback.extract_tb(trace))
        )


class _JsonWithoutText(_WithoutText, JsonFormatter):
    pass


class _PlainWithoutText(_WithoutText, _Plain):
    pass


def set_up_logging(table: LoggingTable) -> None:
    """Send every log line of this process to standard error: plain where that is a terminal, else as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(log_text=table.log_text, terminal=sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(table.level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").setLevel("WARNING")  # the server logs its requests itself
    for name in _CLIENTS:
        logging.getLogger(name).setLevel("WARNING")
    for name in _TEXTUAL:
        logging.getLogger(name).setLevel(logging.NOTSET if table.log_text else logging.ERROR)


def _formatter(*, log_text: bool, terminal: bool) -> logging.Formatter:
    if terminal:
        return _Plain() if log_text else _PlainWithoutText()
    kind = JsonFormatter if log_text else _JsonWithoutText
    return kind(_FIELDS, rename_fields={"asctime": "time", "levelname": "level", "name": "logger"})
