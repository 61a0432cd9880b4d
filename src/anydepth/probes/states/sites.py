"""Choose where to read a model: the blocks around its upper middle, where published probes stand."""

from collections.abc import Mapping, Sequence
from typing import Any

from anydepth.backends.protocol import Reader, Site
from anydepth.errors import UnsupportedModel

TWELFTHS = (6, 7, 8, 9, 10)
"""The default blocks, in twelfths of the depth: 50, 58, 67, 75 and 83 %."""


def default_layers(blocks: int) -> tuple[int, ...]:
    """The default blocks of a model that has `blocks` of them."""
    return tuple(dict.fromkeys(blocks * twelfth // 12 for twelfth in TWELFTHS))


def sites_for(backend: Reader, layers: Sequence[int | str] | None = None) -> tuple[Site, ...]:
    """Where to read at `layers`, by default `default_layers` of those that can be read, in the order of the blocks.

    A number is a block, at the module that probes of this model read by default; text is a site, e.g. `15.self_attn`.

    Raises:
        UnsupportedModel: There is no such block or module.
        ConfigError: A text is not of the form BLOCK.MODULE.
    """
    describe = getattr(backend, "describe", None)
    facts: Mapping[str, Any] = describe() if describe else {"default_site": str(Site(0))}
    if facts["default_site"] is None:
        raise UnsupportedModel(facts["site_reason"])
    module = Site.parse(facts["default_site"]).module
    chosen = layers if layers is not None else default_layers(facts.get("readable_layers", backend.identity.num_layers))
    named = {Site.parse(layer) if isinstance(layer, str) else Site(layer, module) for layer in chosen}
    sites = tuple(sorted(named, key=lambda site: (site.block, site.module)))
    for site in sites:
        backend.check_site(site)
    return sites


def is_before_the_model(site: Site) -> bool:
    """Whether the state at `site` is made of the token alone: it is that of the first block's input, or a norm of it.

    A header token has the same state there whatever the answer was.
    """
    return site.block == 0 and site.module == Site(0).module
