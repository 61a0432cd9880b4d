"""Give the options that vLLM has to be started with."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anydepth.backends.vllm.report import KEY
from anydepth.settings import Settings, load_settings

SCHEDULER = "anydepth.backends.vllm.scheduler.GuardedScheduler"
WORKER = "anydepth.backends.vllm.worker.GuardedWorker"
VARIABLE = "ANYDEPTH_GUARD"
"""Environment variable with the path of a guard.toml: the plugin then fills in the options below."""

ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
"""What vLLM has to find in its environment: the guard reads from the first model runner."""


def engine_options(settings: Settings, **extra: Any) -> dict[str, Any]:
    """Keyword arguments for `vllm.LLM` and `EngineArgs`; sets the environment that they need.

    Args:
        settings: The guard.toml; paths in it should be absolute, as `load_settings` makes them.
        **extra: Further entries of `additional_config["anydepth"]`, see `EngineOptions`.
    """
    os.environ.update(ENVIRONMENT)
    record = {"settings": settings.model_dump(mode="json", exclude_unset=True), **extra}
    return {
        "scheduler_cls": SCHEDULER,
        "worker_cls": WORKER,
        "async_scheduling": False,
        "additional_config": {KEY: record},
    }


def serve_arguments(settings: Settings, **extra: Any) -> list[str]:
    """The same for the command line of vLLM's server; `ENVIRONMENT` has to be set for it."""
    options = engine_options(settings, **extra)
    return [
        *("--scheduler-cls", options["scheduler_cls"]),
        *("--worker-cls", options["worker_cls"]),
        "--no-async-scheduling",
        *("--additional-config", json.dumps(options["additional_config"])),
    ]


def fill_in(arguments: Any, environment: Mapping[str, str] = os.environ) -> bool:
    """Add the guard's options to vLLM's `EngineArgs` if they, or the environment, ask for a guard.

    Returns:
        Whether a guard is asked for: `additional_config` has our table, or `ANYDEPTH_GUARD` names a guard.toml.
    """
    given = arguments.additional_config if isinstance(arguments.additional_config, dict) else {}
    path = environment.get(VARIABLE)
    if KEY not in given and not path:
        return False
    options = engine_options(load_settings(Path(path)) if path else Settings())
    arguments.additional_config = {**options.pop("additional_config"), **given}
    for name, value in options.items():
        setattr(arguments, name, value)
    return True
