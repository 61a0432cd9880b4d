"""The console at `/`: a page for people, and the facts of this server that it needs."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from anydepth import __version__
from anydepth.files import packaged_toml
from anydepth.policy import policy_record
from anydepth.schedule import Every
from anydepth.server.engine.engine import EngineFacts
from anydepth.server.http.request_limits import answer_length
from anydepth.server.service import Service
from anydepth.settings import Settings
from anydepth.templates.template import ChatTemplate

CONFIG_PATH = "/console/config"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # text of a model cannot become markup, whatever a script does with it
        "trusted-types 'none'",
    )
)


def mount_console(app: FastAPI, service: Service) -> None:
    """Add the page, its files, and `/console/config`."""
    for path in console_paths():
        app.add_route(path, _file_endpoint(path), methods=["GET"], include_in_schema=False)

    async def _config(_: Request) -> Response:
        return JSONResponse(console_config(service))

    app.add_route(CONFIG_PATH, _config, methods=["GET"], include_in_schema=False)


@cache
def console_paths() -> frozenset[str]:
    """Paths of the page and its files: none of them has anything of this server in it, so they need no API key."""
    return frozenset(_files())


def console_config(service: Service) -> dict[str, Any]:
    """What the page may offer, which is what the operator allows clients, and the examples of the gallery."""
    facts, settings = service.engine.facts, service.settings
    guard, allowed, limits = facts.guard, settings.overrides, settings.limits
    schedule = guard.schedule
    return {
        "version": __version__,
        "model": facts.model,
        "guard": {
            "policy": policy_record(guard.policy),
            "interval": schedule.interval if isinstance(schedule, Every) else None,
            "schedule": repr(schedule),
            "release": guard.release,
            "on_error": guard.on_error,
            "refusal": guard.refusal,
        },
        "allowed": {
            **allowed.model_dump(mode="json", include={"interval", "threshold", "policies", "checks"}),
            "release": list(dict.fromkeys([guard.release, *allowed.release])),
        },
        "compare": _comparison(settings, guard.release),
        "limits": {"max_tokens": limits.max_tokens, "default_max_tokens": answer_length(limits, None)},
        "prefill": facts.prefill,
        "gallery": gallery(facts),
    }


def _comparison(settings: Settings, release: str) -> str:
    """Whether the unguarded answer can be shown: `offered`, `off` (by [console]) or `not_allowed` (by [overrides])."""
    if not settings.console.compare:
        return "off"
    return "offered" if "monitor" in (release, *settings.overrides.release) else "not_allowed"


def gallery(facts: EngineFacts) -> list[dict[str, Any]]:
    """The examples of `gallery.toml` that this model can be asked: their `{header}` is its Safety Tokens, as text."""
    header = _header_text(facts.template)
    demo = packaged_toml("demo.toml")["demo"]
    examples = []
    for row in packaged_toml("gallery.toml")["example"]:
        texts = {"prompt": demo["request"], "prefill": demo["prefill"].strip()} if row.get("demo") else row
        if (texts.get("prefill") and not facts.prefill) or (header is None and "{header}" in texts["prompt"]):
            continue
        examples.append(
            {
                **{name: row[name].strip() for name in ("id", "name", "kind", "note")},
                "prompt": texts["prompt"].strip().replace("{header}", header or ""),
                "prefill": texts.get("prefill", "").strip(),
            }
        )
    return examples


def _header_text(template: ChatTemplate) -> str | None:
    """The Safety Tokens as text; None where a provider keeps them for itself."""
    if template.header is None:
        return None
    return template.tokenizer.decode(list(template.header.ids), skip_special_tokens=False)


@cache
def _files() -> dict[str, tuple[bytes, str]]:
    """Path -> content and its type."""
    root = Path(__file__).parents[1] / "static"
    files = {
        f"/console/{path.relative_to(root).as_posix()}": (path.read_bytes(), _TYPES[path.suffix])
        for path in root.rglob("*")
        if path.suffix in _TYPES
    }
    files["/"] = files.pop("/console/index.html")
    return files


def _file_endpoint(path: str) -> Callable[[Request], Response]:
    content, kind = _files()[path]
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"Content-Type": kind, "Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "ETag": tag}

    def _file(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return _file
