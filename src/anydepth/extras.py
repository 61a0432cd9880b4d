"""Import an optional dependency, or say how to install it."""

import importlib
import re
from types import ModuleType

from anydepth.errors import MissingExtra


def require(module: str, *, extra: str, at_least: tuple[int, int] = (0, 0)) -> ModuleType:
    """Import `module`; raise MissingExtra with the exact install line if it is not there or too old.

    Args:
        module: Its name.
        extra: The extra of this package that installs it.
        at_least: The oldest version that works, major and minor number; that of `module.__version__` is compared.
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
