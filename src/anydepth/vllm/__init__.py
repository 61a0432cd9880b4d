"""Guard answers inside vLLM: the check rides in the decode step.

The package is a vLLM plugin (docs/vllm.md). The scheduler decides and holds back, the worker reads:

    engine/     the scheduler, with one `GuardedRequest` per guarded request       engine process
    worker/     the worker, whose model runner reads hidden states                 worker processes
    wire.py     what the two send each other
    front/      the middleware before vLLM's HTTP server                           front-end process
    setup.py    what scheduler and worker make of `additional_config["anydepth"]`
    launch.py   the options to start vLLM with; plugin.py fills them in
    vllm_backend.py    hidden states of finished answers, offline

Nothing here imports vllm before it is used.
"""

from typing import TYPE_CHECKING

from anydepth.extras import exports

if TYPE_CHECKING:
    from anydepth.vllm.launch import engine_options

__all__ = ["engine_options"]
__getattr__ = exports(__name__, "anydepth.vllm.launch")
