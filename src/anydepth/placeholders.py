"""Fill texts into a text."""

import re


def filled(template: str, **parts: str) -> str:
    """Fill `{name}` in, in one pass: what is filled in is not looked at again, and other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda found: parts.get(found[1], found[0]), template)
