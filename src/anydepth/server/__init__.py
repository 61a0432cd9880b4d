"""An OpenAI-compatible server that guards every answer (extra `server`)."""

from typing import TYPE_CHECKING

from anydepth.extras import exports

if TYPE_CHECKING:
    from anydepth.server.app import build_app
    from anydepth.server.service import Service
    from anydepth.server.transformers_engine import TransformersEngine

__all__ = ["Service", "TransformersEngine", "build_app"]
__getattr__ = exports(__name__, "anydepth.server.app", "anydepth.server.service", "anydepth.server.transformers_engine")
