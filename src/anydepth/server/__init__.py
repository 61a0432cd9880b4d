"""An OpenAI-compatible server that guards every answer (extra `server`)."""

from typing import TYPE_CHECKING

from anydepth.extras import exports

if TYPE_CHECKING:
    from anydepth.server.engine.transformers_engine import TransformersEngine
    from anydepth.server.http.app import build_app
    from anydepth.server.service import Service

__all__ = ["Service", "TransformersEngine", "build_app"]
__getattr__ = exports(
    __name__, "anydepth.server.http.app", "anydepth.server.service", "anydepth.server.engine.transformers_engine"
)
