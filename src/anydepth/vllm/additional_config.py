"""Read what the operator wrote into vLLM's `additional_config`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from anydepth.backends.protocol import Site
from anydepth.errors import ConfigError
from anydepth.settings import Settings, parse_settings
from anydepth.vllm.report_field import KEY

ReadOutChoice = Literal["auto", "hooks", "aux"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`additional_config["anydepth"]`.

    Attributes:
        settings: The `guard.toml`.
        allow_unguarded: Requests may switch their guard off: for measurements, never for service.
        read_out: How states are read: `hooks` (any module; needs eager mode), `aux` (the model's auxiliary hidden
            states; works in compiled graphs) or `auto`.
        sites: Instead of guarding, give the states at these sites to `VllmBackend`.
        spool: Folder that such states are written to.
    """

    settings: Settings = field(default_factory=Settings)
    allow_unguarded: bool = False
    read_out: ReadOutChoice = "auto"
    sites: tuple[Site, ...] = ()
    spool: str | None = None

    @property
    def collects(self) -> bool:
        """True if the engine gives states instead of guarding answers."""
        return bool(self.sites)


_KEYS = {"settings", "allow_unguarded", "read_out", "collect"}


def engine_options(additional: Any) -> EngineOptions:
    """Read `VllmConfig.additional_config`; ConfigError names what is missing or unknown."""
    record = additional.get(KEY) if isinstance(additional, Mapping) else None
    if not isinstance(record, Mapping):
        raise ConfigError(
            f"additional_config has no table {KEY!r}; start vLLM with the options of "
            "anydepth.vllm.launch.engine_options, or set ANYDEPTH_GUARD (docs/vllm.md)"
        )
    if unknown := sorted(set(record) - _KEYS):
        raise ConfigError(f"additional_config[{KEY!r}] has {unknown[0]!r}; it takes {', '.join(sorted(_KEYS))}")
    read_out, collect = record.get("read_out", "auto"), record.get("collect") or {}
    if read_out not in ("auto", "hooks", "aux"):
        raise ConfigError(f"read_out is {read_out!r}; choose auto, hooks or aux")
    settings = parse_settings(record.get("settings") or {}, origin=f"additional_config[{KEY!r}]")
    if settings.tools.gate:
        raise ConfigError("[tools] gate does not apply to the engine vllm: drop it, or use --engine transformers")
    return EngineOptions(
        settings=settings,
        allow_unguarded=record.get("allow_unguarded") is True,
        read_out=read_out,
        sites=tuple(Site.parse(site) for site in collect.get("sites", ())),
        spool=collect.get("spool"),
    )
