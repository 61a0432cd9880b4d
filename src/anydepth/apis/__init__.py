"""Guard models behind an API by look-ahead: any OpenAI-compatible endpoint, and Anthropic's Messages."""

from anydepth.apis.api_backend import ApiBackend
from anydepth.prices import Prices

__all__ = ["ApiBackend", "Prices"]
