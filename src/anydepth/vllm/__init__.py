"""Guard answers inside vLLM: the check rides in the decode step.

The package is a vLLM plugin (docs/vllm.md). The scheduler decides and holds back, the worker reads:

    scheduler.py   vLLM's scheduler, with one `Ward` a guarded request     engine process
      ward · watch · board · inquiry · outgoing · desk                     (pure logic, no vllm)
    worker.py      vLLM's worker; its runner reads hidden states           worker processes
      runner · readout
    setup.py       what both make of `additional_config["anydepth"]`
      options · facts · identity · versions
    launch.py      the options to start vLLM with; plugin.py fills them in
    backend.py     hidden states of finished answers, offline

Nothing here imports vllm before it is used.
"""

from typing import TYPE_CHECKING

from anydepth.extras import exports

if TYPE_CHECKING:
    from anydepth.vllm.launch import engine_options

__all__ = ["engine_options"]
__getattr__ = exports(__name__, "anydepth.vllm.launch")
