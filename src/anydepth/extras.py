"""Import what is needed when it is needed: an optional dependency, or the public names of a room."""

import importlib
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from anydepth.errors import MissingExtra


def require(module: str, *, extra: str, at_least: tuple[int, int] = (0, 0)) -> ModuleType:
    """Import `module`, or raise an error with the exact install line.

    Args:
        module: Name of the module.
        extra: The extra of this package that installs it.
        at_least: The oldest version that works, major and minor number; that of `module.__version__` is compared.

    Raises:
        MissingExtra: The module is not installed, or is older.
    """
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module != error.name and not module.startswith(error.name + "."):
            raise  # the module is there, one of its own imports is not: that is another problem
        raise MissingExtra(f"{module} is not installed; run: pip install 'anydepth[{extra}]'") from error
    version = str(getattr(found, "__version__", "0.0")) if at_least > (0, 0) else "0.0"
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < at_least:
        oldest = ".".join(map(str, at_least))
        raise MissingExtra(
            f"{module} is {version}, and anydepth works with {oldest} and newer; run: pip install 'anydepth[{extra}]'"
        )
    return found


def exports(room: str, *modules: str) -> Callable[[str], Any]:
    """The `__getattr__` (PEP 562) of a package whose public names are imported on first use.

    Args:
        room: The package's `__name__`; its `__all__` lists the names.
        modules: Where the names are defined.
    """

    def get(name: str) -> Any:
        if name in sys.modules[room].__all__:
            for module in map(importlib.import_module, modules):
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    return get
