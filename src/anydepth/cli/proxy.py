"""`anydepth proxy`: the guarded server in front of a model behind an API."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anydepth.cli import options as opt
from anydepth.cli.output import err
from anydepth.cli.server_settings import http, merged, with_policy
from anydepth.config import external_named
from anydepth.errors import ConfigError
from anydepth.extras import require
from anydepth.types import OnError, ReleaseMode

if TYPE_CHECKING:
    from anydepth.server.engine.api_engine import ApiEngine
    from anydepth.settings import Settings

PANEL = "The upstream"


def _upstream(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=PANEL, **more)


def proxy(
    upstream: Annotated[
        str | None, _upstream("--upstream", metavar="URL", help="Where the API is, e.g. https://api.openai.com/v1.")
    ] = None,
    model: Annotated[str | None, _upstream("--model", metavar="NAME", help="Name of the model there.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="PATH", help="A guard.toml; options given here come first.")
    ] = None,
    api: Annotated[
        Literal["openai", "anthropic"] | None,
        _upstream(
            "--api", help="Its form: chat completions of OpenAI's form, or Anthropic's Messages. Default: openai."
        ),
    ] = None,
    capability: Annotated[
        Literal["auto", "closes", "between", "raw"] | None,
        _upstream("--capability", help="How a fresh turn is asked for. Default: auto, which finds it out."),
    ] = None,
    tokenizer: Annotated[
        str | None, _upstream("--tokenizer", metavar="MODEL", help="Id or folder of its tokenizer, for capability raw.")
    ] = None,
    key_env: Annotated[
        str | None,
        _upstream(
            "--key-env",
            metavar="NAME",
            help="Environment variable with the API key. Default: OPENAI_API_KEY or ANTHROPIC_API_KEY.",
        ),
    ] = None,
    key_file: Annotated[
        Path | None, _upstream("--key-file", metavar="PATH", help="File with the API key, instead of a variable.")
    ] = None,
    host: Annotated[str | None, http("--host", help="Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, http("--port", min=0, max=65535, help="Default: 8000.")] = None,
    name: Annotated[str | None, http("--name", help="Name of the model that clients use.")] = None,
    live: Annotated[int | None, http("--live", min=1, help="Answers at the same time. Default: 16.")] = None,
    external: opt.External = None,
    policy: opt.PolicyOption = None,
    threshold: opt.Threshold = None,
    interval: opt.Interval = None,
    release: Annotated[ReleaseMode | None, opt.guard("--release", help="Default: hold.")] = None,
    on_error: Annotated[OnError | None, opt.guard("--on-error", help="Default: closed.")] = None,
    refusal: opt.Refusal = None,
) -> None:
    """Serve a model behind an API to OpenAI clients; each answer is guarded by look-ahead (Rethink).

    At each check the same model is asked for a fresh turn behind the answer so far, and a refusal there halts the
    answer. One request or two at the start find out how such a turn is asked for. Clients send the key of the
    environment variable ANYDEPTH_API_KEY, if it is set; the upstream's own key stays here. docs/apis.md says what this
    costs and what it leaves out.
    """
    require("fastapi", extra="server")
    given = {
        "upstream": {
            "url": upstream, "model": model, "name": name, "api": api, "capability": capability, "tokenizer": tokenizer,
            "key_env": key_env, "key_file": None if key_file is None else str(key_file),
        },
        "guard": {
            "detector": None if external is None else "cascade", "interval": interval, "release": release,
            "on_error": on_error, "refusal": refusal,
        },
        "external": {} if external is None else external_named(external),
        "limits": {"live": live},
        "http": {"host": host, "port": port},
    }  # fmt: skip
    settings = _settings(config, given)
    if threshold is not None and settings.guard.policy is None:
        policy = policy or "threshold"  # a look-ahead has no policy of its own
    settings = with_policy(settings, policy, threshold)
    from anydepth.server.engine.open_upstream import open_client
    from anydepth.server.run import serve as run

    client = open_client(settings.upstream)  # before anything is opened: a key that is missing is told at once
    run(lambda: _engine(settings, client), settings)


def _settings(config: Path | None, given: dict[str, dict[str, Any]]) -> "Settings":
    settings = merged(config, given)
    for value, option, key in (
        (settings.upstream.url, "--upstream URL", "url"),
        (settings.upstream.model, "--model NAME", "model"),
    ):
        if value is None:
            raise ConfigError(f"there is no {key} of an upstream; give {option}, or [upstream] {key} in guard.toml")
    return settings


def _engine(settings: "Settings", client: Any) -> "ApiEngine":
    """Try the upstream, and make the engine over it."""
    from anydepth.server.engine.open_upstream import open_engine

    with err.status("trying the upstream"):
        return open_engine(settings, client)
