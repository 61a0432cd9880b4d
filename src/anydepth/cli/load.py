"""Open what a command works on; the one place where the command line reaches the heavy modules."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from anydepth.backends.protocol import Reader, Site, sites_of
from anydepth.cli.options import GuardOptions, ModelOptions
from anydepth.cli.output import err, printable
from anydepth.detectors import LinearProbe, detector_named, detector_over
from anydepth.errors import ConfigError
from anydepth.policy import with_threshold

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend
    from anydepth.detectors import Detector
    from anydepth.guard import Guard
    from anydepth.settings import GuardTable
    from anydepth.vllm.vllm_backend import VllmBackend

    GuardChoice = GuardOptions | GuardTable

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet(model: str) -> None:
    """Keep the model library's own chatter off the terminal; what the user set in the environment wins.

    A model of the hub may be downloaded: its progress bars stay.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if Path(model).exists():
        with suppress(ImportError):  # what is missing is said by what needs it
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()


@contextmanager
def _loading(model: str) -> Iterator[None]:
    """Show that a model is being loaded, unless progress bars of a download do."""
    quiet(model)
    with err.status(f"loading {escape(printable(model))}") if Path(model).exists() else nullcontext():
        yield


def open_guard(model: ModelOptions, choice: "GuardChoice", external: "Mapping[str, Any] | None" = None) -> "Guard":
    """Load a model with the guard on that the command line or guard.toml chooses; `external` is its external guard."""
    with _loading(model.model):
        from anydepth.backends.transformers import load
        from anydepth.detectors.named import shipped_probe
        from anydepth.guard import Guard

        given = choice.guard_options()
        if model.engine == "vllm":
            guard = Guard.from_backend(*_open_vllm_with_probe(model, choice), **given)
        else:
            detector = _named(choice, external)  # before the model: a bad file is found in milliseconds
            backend = load(model.model, **model_arguments(model))
            if detector is None:
                detector = detector_over(shipped_probe(backend), choice.detector, choice.band, external)
            guard = Guard.from_backend(backend, detector, **given)
        if choice.threshold is None or given["policy"] is not None:
            return guard
        return guard.with_options(policy=with_threshold(guard.policy, choice.threshold))


def _named(choice: "GuardChoice", external: "Mapping[str, Any] | None") -> "Detector | None":
    """The detector that is chosen, as far as no model is needed to find it."""
    if choice.probe is None:
        return detector_named(choice.detector)
    return detector_over(LinearProbe.load(choice.probe), choice.detector, choice.band, external)


def open_backend(model: ModelOptions) -> "TransformersBackend":
    """Load a model without a detector."""
    with _loading(model.model):
        from anydepth.backends.transformers import load

        return load(model.model, **model_arguments(model))


def open_vllm(model: ModelOptions, sites: "Callable[[Any], Sequence[Site]]") -> "VllmBackend":
    """Start vLLM to read the states of finished answers at the sites that `sites` gives for the model's facts.

    The facts are the part of a backend that needs no engine.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    with _loading(model.model):
        from anydepth.vllm.vllm_backend import VllmBackend

        options = {"dtype": model.dtype, "revision": model.revision, **model.engine_options()}
        return VllmBackend(model.model, sites=sites, template_kwargs=model.template_kwargs, **options)


def _open_vllm_with_probe(model: ModelOptions, options: "GuardChoice") -> "tuple[VllmBackend, LinearProbe]":
    """The engine, and the probe that it was started for."""
    from anydepth.detectors.named import shipped_probe

    if options.detector != "probe":
        raise ConfigError(
            f"--detector {options.detector} looks ahead, which --engine vllm does for answers of its own "
            "only; scan with --engine transformers"
        )
    given = None if options.probe is None else LinearProbe.load(options.probe)
    bound: list[LinearProbe] = []

    def sites(facts: "Reader") -> "Sequence[Site]":
        probe = given or shipped_probe(facts)
        probe.bind(facts)
        bound.append(probe)
        return sites_of(probe.reads)

    return open_vllm(model, sites), bound[0]


def model_arguments(model: ModelOptions) -> dict[str, Any]:
    """How Transformers is to load the model."""
    given = asdict(model)
    return {name: given[name] for name in ("adapter", "dtype", "device", "revision", "template_kwargs", "ride")}
