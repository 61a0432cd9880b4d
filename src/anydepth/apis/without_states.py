"""Refuse what a model behind an API does not have."""

from collections.abc import Sequence
from typing import Any

from anydepth.backends.protocol import FinishedAnswer, Site
from anydepth.errors import CapabilityError, UnsupportedModel


class WithoutStates:
    """The part of `anydepth.backends.protocol.Reader` that needs the model itself."""

    def check_site(self, site: Site) -> None:
        """UnsupportedModel: an API has no hidden states."""
        raise UnsupportedModel(f"site {site} cannot be read over an API; use Rethink()")

    def read_batch(
        self,
        answers: Sequence[FinishedAnswer],
        sites: Sequence[Site],
        *,
        tokens: Sequence[int],
        suffix: Sequence[int] | None = None,
    ) -> Any:
        """CapabilityError: an API has no hidden states."""
        raise CapabilityError("an API gives no hidden states; use Rethink()")

    def first_token_ids(self, texts: Sequence[str]) -> list[int]:
        """CapabilityError: the provider's tokens are not known."""
        raise CapabilityError("an API's tokens are not known; use Rethink(mode='look-ahead')")
