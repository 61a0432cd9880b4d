"""Open the detector that an operator names, in guard.toml or on the command line."""

from importlib import import_module
from typing import Any

from anydepth.config import check_detector_name
from anydepth.detectors.detector import Detector
from anydepth.detectors.rethink import Rethink
from anydepth.errors import ConfigError

_RETHINK = {"rethink": "look-ahead", "rethink-score": "score"}


def detector_named(name: str) -> Detector | None:
    """The detector of this name, not bound to a model yet; None for `probe`, which is a file or shipped.

    Args:
        name: `probe`, `rethink`, `rethink-score`, or `package.module:attribute`, a class or function that is called
            without arguments and gives a detector.

    Raises:
        ConfigError: There is no such name, module or attribute, or it does not give a detector.
    """
    check_detector_name(name)
    if name == "probe":
        return None
    if name in _RETHINK:
        return Rethink(_RETHINK[name])
    module, _, attribute = name.partition(":")
    try:
        make: Any = getattr(import_module(module), attribute)
        detector = make()
    except Exception as error:  # the user's own code
        raise ConfigError(f"detector {name!r} cannot be made: {type(error).__name__}: {error}") from error
    missing = [each for each in ("name", "needs", "bind", "check") if not hasattr(detector, each)]
    if missing:
        raise ConfigError(f"detector {name!r} gives a {type(detector).__name__}, which lacks {', '.join(missing)}")
    return detector
