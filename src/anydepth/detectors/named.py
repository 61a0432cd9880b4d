"""Open the detector that an operator names, in guard.toml or on the command line."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from anydepth.config import OVER_PROBE, check_detector_name
from anydepth.detectors.cascade import Cascade
from anydepth.detectors.detector import Detector
from anydepth.detectors.external_guard import ExternalGuard
from anydepth.detectors.probe import LinearProbe, find_shipped
from anydepth.detectors.rethink import Rethink
from anydepth.errors import ConfigError

_RETHINK = {"rethink": "look-ahead", "rethink-score": "score"}


def detector_named(name: str) -> Detector | None:
    """The detector of this name, not bound to a model yet; None for `probe` and `cascade`, see `detector_over`.

    Args:
        name: `probe`, `cascade`, `rethink`, `rethink-score`, or `package.module:attribute`, a class or function that
            is called without arguments and gives a detector.

    Raises:
        ConfigError: There is no such name, module or attribute, or it does not give a detector.
    """
    check_detector_name(name)
    if name in OVER_PROBE:
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


def detector_over(
    probe: LinearProbe,
    name: str,
    band: Sequence[float] | None = None,
    external: Mapping[str, Any] | None = None,
) -> Detector:
    """The detector of this name that is made of `probe`, which is a file or shipped.

    Args:
        probe: The probe.
        name: `probe` or `cascade`.
        band: Low and high of the cascade, with a look-ahead as its second detector. Without it the cascade is the one
            that the probe was calibrated for.
        external: The external guard that a cascade asks last: arguments of `ExternalGuard`, and with `unsure` where.

    Raises:
        ConfigError: `name` is another detector, or there is no band.
    """
    if external is not None and name != "cascade":
        raise ConfigError(f"an external guard goes with the detector cascade, not with {name}; drop one")
    if name == "probe":
        return probe
    if name != "cascade":
        raise ConfigError(
            f"detector {name!r} is not made of a probe; name no probe, or choose {' or '.join(OVER_PROBE)}"
        )
    third, unsure = (None, None) if external is None else _external(external)
    if band is None:
        return Cascade.calibrated(probe, third=third, unsure=unsure)
    return Cascade(probe, Rethink(), *band, third=third, unsure=unsure)


def cascade_without_probe(first: Detector, external: Mapping[str, Any]) -> Cascade:
    """The cascade of a look-ahead and an external guard, for a model whose states cannot be read.

    Args:
        first: The look-ahead.
        external: Arguments of `ExternalGuard`, and with `unsure` the scores of the look-ahead at which it is asked;
            by default all but 1, a refusal.
    """
    second, unsure = _external(external)
    return Cascade(first, second, *(unsure or (0.0, 1.0)))


def _external(options: Mapping[str, Any]) -> tuple[ExternalGuard, Sequence[float] | None]:
    own = dict(options)
    unsure = own.pop("unsure", None)
    return ExternalGuard(own.pop("url"), own.pop("model"), **own), unsure


def shipped_probe(backend: Any) -> LinearProbe:
    """The probe that the package ships for this model; ConfigError with the remedy if there is none."""
    probe = find_shipped(backend)
    if probe is None:
        raise ConfigError(
            f"no detector was given and no probe is shipped for {backend.identity.name}; pass probe= (fit one with "
            "`anydepth fit`), or detector=Rethink(), which needs no training"
        )
    return probe
