"""Say in one line why a library failed, in its own words."""

import re
import traceback

LONGEST = 1000
"""Characters of a library's message that are kept; some go on with a list of everything they know."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_TERSE = (LookupError, AttributeError, TypeError, AssertionError, NotImplementedError, ArithmeticError)
"""Kinds whose message alone says little (a KeyError's is the key), so that kind and place are named as well."""


def reason(error: BaseException) -> str:
    """All lines of an error's message as one line of at most `LONGEST` characters, without the full stop.

    The first line alone often says nothing ("401 Client Error", "one of:"), so all of them are kept. Where the message
    is empty or of a kind that is not written for people, the error's class and where it was raised are added.
    """
    text = " ".join(_COLOURS.sub("", str(error)).split()).rstrip(".")
    if not text or isinstance(error, _TERSE):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        text += _place(error)
    if len(text) <= LONGEST:
        return text
    return text[:LONGEST].rsplit(" ", 1)[0] + " …"


def _place(error: BaseException) -> str:
    """` in module.function`, where the error was raised; nothing if it never was."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return ""
    frame = frames[-1][0]
    return f" in {frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}"
