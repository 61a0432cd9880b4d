"""Log as JSON lines, without the text of prompts or answers."""

import logging
import sys
import traceback
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from anydepth.settings import LoggingTable

_FIELDS = "%(asctime)s %(levelname)s %(name)s %(message)s"
_TEXTUAL = ("anydepth.driver",)
"""Loggers that quote the errors of detectors, which may quote the answer."""


class _WithoutText(JsonFormatter):
    """Leaves the message of an exception out: it may quote what was being worked on."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  a method of logging.Formatter
        """Kind and place of the exception."""
        kind, _, trace = ei
        return f"{getattr(kind, '__name__', kind)} at " + " < ".join(
            f"{frame.filename}:{frame.lineno}" for frame in reversed(traceback.extract_tb(trace))
        )


def set_up_logging(table: LoggingTable) -> None:
    """Send every log line of this process to standard error as JSON."""
    kind = JsonFormatter if table.log_text else _WithoutText
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(kind(_FIELDS, rename_fields={"asctime": "time", "levelname": "level", "name": "logger"}))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(table.level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").setLevel("WARNING")  # the server logs its requests itself
    for name in _TEXTUAL:
        logging.getLogger(name).setLevel(logging.NOTSET if table.log_text else logging.ERROR)
