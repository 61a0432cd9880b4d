"""Give the options that vLLM has to be started with."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anydepth.errors import ConfigError, MissingExtra
from anydepth.settings import Settings, load_settings
from anydepth.vllm.report_field import KEY

SCHEDULER = "anydepth.vllm.engine.scheduler.GuardedScheduler"
COLLECTOR = "anydepth.vllm.engine.state_scheduler.StateScheduler"
WORKER = "anydepth.vllm.worker.worker.GuardedWorker"
FRONT = "anydepth.vllm.front.middleware.GuardFront"
VARIABLE = "ANYDEPTH_GUARD"
"""Environment variable with the path of a guard.toml: the plugin then fills in the options below."""

ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
"""What vLLM finds in its environment unless there is another value: the first model runner."""

OWN_FLAGS = ("model", "scheduler-cls", "worker-cls", "additional-config")
"""Flags of vLLM that are ours to give."""


def engine_options(settings: Settings, **extra: Any) -> dict[str, Any]:
    """Keyword arguments for `vllm.LLM` and `EngineArgs`; sets the environment variables that they need.

    Args:
        settings: The guard.toml; paths in it should be absolute, as `load_settings` makes them.
        **extra: Further entries of `additional_config["anydepth"]`, see `EngineOptions`.

    Raises:
        ConfigError: A setting has no counterpart in vLLM.
    """
    _check_settings(settings)
    return _with_classes({KEY: {"settings": settings.model_dump(mode="json", exclude_unset=True), **extra}})


def _with_classes(additional: dict[str, Any]) -> dict[str, Any]:
    """The options of vLLM that belong to an `additional_config` with our table."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    table = additional[KEY]
    collects = isinstance(table, Mapping) and table.get("collect")
    return {
        "scheduler_cls": COLLECTOR if collects else SCHEDULER,
        "worker_cls": WORKER,
        "additional_config": additional,
    }


def serve_arguments(settings: Settings, **extra: Any) -> list[str]:
    """The flags of `engine_options` for the command line of vLLM's server, which needs `ENVIRONMENT`."""
    options = engine_options(settings, **extra)
    return [
        *("--scheduler-cls", options["scheduler_cls"]),
        *("--worker-cls", options["worker_cls"]),
        *("--additional-config", json.dumps(options["additional_config"])),
    ]


def server_command(settings: Settings, flags: Sequence[str] = ()) -> list[str]:
    """The command of vLLM's own server behind the guard's front; `ENVIRONMENT` has to be set for it.

    Args:
        settings: What the operator decided; `[model] path` is what is served.
        flags: Further flags of vLLM. They come before the guard's own, the last of which vLLM takes.

    Raises:
        ConfigError: A setting has no counterpart in vLLM, or a flag would take the guard's place.
        MissingExtra: vLLM is not installed here.
    """
    model, http = settings.model, settings.http
    _check_settings(settings)
    _check_flags(flags)
    if find_spec("vllm") is None:
        raise MissingExtra(
            "vllm is not installed; run: pip install 'anydepth[vllm]', best in an environment of its own: vLLM pins "
            "its own versions of torch and transformers"
        )
    named = {"--served-model-name": model.name, "--revision": model.revision}
    named["--dtype"] = model.dtype if "dtype" in model.model_fields_set else None
    # vLLM writes the prompts, with these unless a request has its own; the header is of the same.
    variables = model.model_dump(mode="json")["template_kwargs"]
    named["--default-chat-template-kwargs"] = json.dumps(variables) if variables else None
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", http.host, "--port", str(http.port)),
        *(part for name, value in named.items() if value is not None for part in (name, value)),
        *flags,
        *("--model", str(model.path), *serve_arguments(settings), "--middleware", FRONT),
    ]


def _check_settings(settings: Settings) -> None:
    for name, value, remedy in (
        ("[upstream] url", settings.upstream.url, "`anydepth proxy` is for it"),
        ("[model] adapter", settings.model.adapter, "give vLLM --enable-lora and --lora-modules"),
        ("[model] device", settings.model.device, "vLLM chooses the device"),
        ("[model] dtype fast", settings.model.dtype == "fast", "name a format, or leave it at auto"),
        (
            "[tools] format",
            settings.tools.format != "auto",
            "give vLLM --enable-auto-tool-choice, --tool-call-parser",
        ),
        ("[tools] keep = false", not settings.tools.keep, "give vLLM --no-enable-prefix-caching"),
        (
            "[tools] gate",
            settings.tools.gate,
            "calls leave when their answer has ended unhalted, and POST /v1/gate judges one before it is run",
        ),
        ("[reasoning] release", settings.reasoning.release != "as_answer", "thoughts leave with the answer's own rule"),
    ):
        if value:
            raise ConfigError(f"{name} does not apply to the engine vllm: drop it; {remedy}")


def _check_flags(flags: Sequence[str]) -> None:
    for flag in flags:
        name = flag.removeprefix("--").partition("=")[0].partition(".")[0].replace("_", "-")
        if flag.startswith("--") and name in OWN_FLAGS:
            raise ConfigError(f"the vLLM flag {flag.partition('=')[0]} is the guard's own; drop it")


def fill_in(arguments: Any, environment: Mapping[str, str] = os.environ) -> bool:
    """Add the guard's options to vLLM's `EngineArgs` if they, or the environment, ask for a guard.

    Returns:
        True if the engine is to be guarded: `additional_config` has our table, or `ANYDEPTH_GUARD` names a guard.toml.
    """
    given = arguments.additional_config if isinstance(arguments.additional_config, dict) else {}
    path = environment.get(VARIABLE)
    if KEY not in given and not path:
        return False
    options = engine_options(load_settings(Path(path)) if path else Settings())
    for name, value in _with_classes({**options["additional_config"], **given}).items():
        setattr(arguments, name, value)
    return True
