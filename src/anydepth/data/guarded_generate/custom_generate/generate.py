"""What `model.generate(custom_generate=...)` of Transformers loads; the work is done in `anydepth`."""

from typing import Any

from anydepth.integrations.transformers import guarded_generate


def generate(model: Any, **arguments: Any) -> Any:
    """Answer under guard; the arguments are those of `model.generate`."""
    return guarded_generate(model, **arguments)
