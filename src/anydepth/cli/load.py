"""Open what a command works on; the one place where the command line reaches the heavy modules."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from anydepth.cli.options import GuardOptions, ModelOptions
from anydepth.cli.output import err, printable
from anydepth.policy import policy_from, policy_record

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend
    from anydepth.guard import Guard

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


def open_guard(model: ModelOptions, options: GuardOptions) -> "Guard":
    """Load a model with its guard on."""
    with _loading(model.model):
        from anydepth import Guard

        guard = Guard.from_pretrained(
            model.model,
            probe=options.probe,
            detector=_rethink(options),
            policy=options.build_policy(),
            schedule=options.build_schedule(),
            release=options.release,
            on_error=options.on_error,
            **_model_arguments(model),
        )
        if options.threshold is not None and options.policy is None:
            record = {**policy_record(guard.policy), "threshold": options.threshold}
            guard = guard.with_options(policy=policy_from(record))
        return guard


def open_backend(model: ModelOptions) -> "TransformersBackend":
    """Load a model without a detector."""
    with _loading(model.model):
        from anydepth.backends.transformers import load

        return load(model.model, template_kwargs=None, **_model_arguments(model))


def has_shipped_probe(backend: "TransformersBackend") -> bool:
    """Say whether the package brings a probe for this model."""
    from anydepth.detectors import find_shipped

    return find_shipped(backend) is not None


def _model_arguments(model: ModelOptions) -> dict[str, Any]:
    return {"adapter": model.adapter, "dtype": model.dtype, "device": model.device, "revision": model.revision}


def _rethink(options: GuardOptions) -> Any:
    if options.detector == "probe":
        return None
    from anydepth.detectors import Rethink

    return Rethink(mode="score" if options.detector == "rethink-score" else "look-ahead")
