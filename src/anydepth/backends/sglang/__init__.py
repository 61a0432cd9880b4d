"""Guard a model that an SGLang server runs, over its HTTP interface."""

from anydepth.extras import require

require("httpx", extra="sglang")

from anydepth.backends.sglang.sglang_backend import SglangBackend  # noqa: E402

__all__ = ["SglangBackend"]
