"""Guard a model that runs in-process on Hugging Face Transformers."""

from anydepth.extras import require

require("torch", extra="transformers", at_least=(2, 6))  # the oldest that Transformers 5.24 takes
require("transformers", extra="transformers", at_least=(5, 16))  # the oldest that the contract suite was run against

from anydepth.backends.transformers.backend import TransformersBackend  # noqa: E402
from anydepth.backends.transformers.load import load  # noqa: E402

__all__ = ["TransformersBackend", "load"]
