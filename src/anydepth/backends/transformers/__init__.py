"""Guard a model that runs in-process on Hugging Face Transformers."""

from anydepth.extras import require

require("torch", extra="transformers")
require("transformers", extra="transformers")

from anydepth.backends.transformers.backend import TransformersBackend  # noqa: E402
from anydepth.backends.transformers.load import load  # noqa: E402

__all__ = ["TransformersBackend", "load"]
