"""The entry point `vllm.general_plugins`: an installed anydepth and one environment variable guard `vllm serve`.

vLLM only logs a plugin that cannot be imported and then serves without it. So this module imports nothing that could be
missing: what goes wrong goes wrong in `register`, whose errors vLLM does not catch.
"""

import functools
import logging
from typing import Any

logger = logging.getLogger("vllm.anydepth")


def register() -> None:
    """Let vLLM's engine arguments ask for the guard; called by vLLM in every process, and safe to call again.

    vLLM has no hook between its command line and its configuration. `EngineArgs.create_engine_config` is the one place
    that every way of starting it goes through; it is wrapped, and does nothing unless a guard is asked for.
    """
    from anydepth.extras import require
    from anydepth.patches import ENGINE_ARGUMENTS
    from anydepth.vllm.launch import fill_in
    from anydepth.vllm.versions import check_version

    arguments: Any = require(ENGINE_ARGUMENTS.module, extra="vllm").EngineArgs
    original = arguments.create_engine_config
    if getattr(original, "anydepth", False):
        return

    @functools.wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        if fill_in(self):
            logger.info("anydepth guards this engine (vLLM %s)", check_version())
            ENGINE_ARGUMENTS.check()  # not before: whoever asks for no guard may have any vLLM
        return original(self, *args, **kwargs)

    vars(create_engine_config)["anydepth"] = True
    ENGINE_ARGUMENTS.replace(arguments, "create_engine_config", create_engine_config)
