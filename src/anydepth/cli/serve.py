"""`anydepth serve`: an OpenAI-compatible server that guards every answer."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.server_settings import http, merged, with_policy
from anydepth.config import external_named
from anydepth.errors import ConfigError
from anydepth.extras import require
from anydepth.policy import with_threshold
from anydepth.types import OnError, ReleaseMode

if TYPE_CHECKING:
    from anydepth.settings import Settings

_ADDRESS_FLAGS = ("--host", "--port", "--uds")
"""Flags of vLLM by which it listens somewhere else than the settings say."""


def serve(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Hugging Face id or folder; default: the one of guard.toml.")
    ] = None,
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- FLAGS]", help="With --engine vllm: flags for vLLM's server.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="PATH", help="A guard.toml; options given here come first.")
    ] = None,
    engine: Annotated[
        opt.EngineName, typer.Option("--engine", help="What generates: Transformers, or vLLM with its own server.")
    ] = "transformers",
    host: Annotated[str | None, http("--host", help="Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, http("--port", min=0, max=65535, help="Default: 8000.")] = None,
    name: Annotated[str | None, http("--name", help="Name of the model that clients use.")] = None,
    probe: opt.Probe = None,
    detector: Annotated[str | None, opt.guard("--detector", help="Default: probe.")] = None,
    external: opt.External = None,
    policy: opt.PolicyOption = None,
    threshold: opt.Threshold = None,
    interval: opt.Interval = None,
    release: Annotated[ReleaseMode | None, opt.guard("--release", help="Default: hold.")] = None,
    on_error: Annotated[OnError | None, opt.guard("--on-error", help="Default: closed.")] = None,
    refusal: opt.Refusal = None,
    check_prefill: opt.CheckPrefill = None,
    adapter: opt.Adapter = None,
    dtype: Annotated[opt.DtypeName | None, opt.model("--dtype", help="Number format of the weights.")] = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
    ride: Annotated[
        opt.RideName | None, opt.model("--ride", help="Whether checks ride in the decode step. Default: never.")
    ] = None,
    template_kwarg: opt.TemplateKwargs = None,
) -> None:
    """Serve a model to OpenAI clients; no token of an answer leaves before a check that covers it.

    The API key is read from the environment variable ANYDEPTH_API_KEY, if it is set. docs/server.md has the whole API,
    docs/guard-toml.md the configuration, docs/vllm.md the engine vllm.
    """
    require("fastapi", extra="server")
    if model is not None and model.startswith("-"):  # `serve --config guard.toml -- --max-model-len 4096`
        model, flags = None, [model, *(flags or ())]
    given = {
        "model": {
            "path": model, "name": name, "adapter": adapter, "dtype": dtype, "device": device, "revision": revision,
            "template_kwargs": opt.template_variables(template_kwarg) or None, "ride": ride,
        },
        "guard": {
            "probe": None if probe is None else str(probe),
            "detector": detector,
            "interval": interval,
            "release": release,
            "on_error": on_error,
            "refusal": refusal,
            "prefill": check_prefill,
        },
        "external": {} if external is None else external_named(external),
        "http": {"host": host, "port": port},
    }  # fmt: skip
    if engine == "vllm":
        _run_vllm(_settings(config, given), policy, threshold, flags or [])
    if flags:
        raise ConfigError(f"{flags[0]!r} is neither MODEL nor an option; flags of vLLM go with --engine vllm")
    from anydepth.server.run import serve as run

    settings = _settings(config, given)
    run(lambda: _engine(settings, policy, threshold), settings)


def _run_vllm(
    settings: "Settings", policy: opt.PolicyName | None, threshold: float | None, flags: list[str]
) -> NoReturn:
    """Become vLLM's own server: its signals and its exit code are this command's."""
    from anydepth.server.resources import check_place
    from anydepth.vllm.launch import ENVIRONMENT, server_command

    for name, value in (("--adapter", settings.model.adapter), ("--device", settings.model.device)):
        if value is not None:
            raise ConfigError(f"{name} {value} does not apply to --engine vllm; see `vllm serve --help` for what does")
    if settings.model.ride != "never":
        raise ConfigError(
            f"ride {settings.model.ride} does not apply to --engine vllm, whose checks ride anyway; drop it"
        )
    settings = with_policy(settings, policy, threshold)
    if threshold is not None and settings.guard.policy is None:
        raise ConfigError(
            f"--threshold {threshold:g} with --engine vllm needs to be told of which policy; add --policy threshold, "
            "or set [guard] policy"
        )
    command = server_command(settings, flags)
    check_place(settings, address=not any(flag.startswith(_ADDRESS_FLAGS) for flag in flags))
    os.execve(command[0], command, {**ENVIRONMENT, **os.environ})


def _settings(config: Path | None, given: dict[str, dict[str, Any]]) -> "Settings":
    """The file's settings with the options of the command line over them."""
    settings = merged(config, given)
    if settings.upstream.url is not None:
        raise ConfigError(f"[upstream] url is {settings.upstream.url!r}; `anydepth proxy` serves an upstream")
    if settings.model.path is None:
        raise ConfigError("there is no model to serve; give MODEL, or [model] path in guard.toml")
    return settings


def _engine(settings: "Settings", policy: opt.PolicyName | None, threshold: float | None) -> Any:
    """Load the model with its guard."""
    from anydepth.backends.protocol import require_sessions
    from anydepth.server.engine.transformers_engine import TransformersEngine

    settings = with_policy(settings, policy, threshold)
    model, limits = settings.model, settings.limits
    assert model.path is not None
    options = opt.ModelOptions(
        model.path, model.adapter, model.dtype, model.device, model.revision, template_kwargs=model.template_kwargs,
        ride=model.ride,
    )  # fmt: skip
    guard = load.open_guard(options, settings.guard, settings.external.options())
    if threshold is not None and settings.guard.policy is None:
        guard = guard.with_options(policy=with_threshold(guard.policy, threshold))
    # what the model's generation config asks for and no guard can do would refuse every request: now, not then
    require_sessions(guard.backend).open([guard.template.prompt("Hello")], max_new_tokens=1, seed=0).close()
    name = model.name or (Path(model.path).resolve().name if Path(model.path).exists() else model.path)
    queued = {"live": limits.live, "queue": limits.queue, "timeout": limits.timeout_seconds}
    return TransformersEngine(guard, model=name, keep=settings.tools.keep, **queued)
