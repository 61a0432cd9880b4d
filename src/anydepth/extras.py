"""Import an optional dependency, or say how to install it."""

import importlib
from types import ModuleType

from anydepth.errors import MissingExtra


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`; raise MissingExtra with the exact install line if it is not there."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module != error.name and not module.startswith(error.name + "."):
            raise  # the module is there, one of its own imports is not: that is another problem
        raise MissingExtra(f"{module} is not installed; run: pip install 'anydepth[{extra}]'") from error
