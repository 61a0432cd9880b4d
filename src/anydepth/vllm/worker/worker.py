"""vLLM's worker, with a model runner that reads hidden states."""

from typing import Any

from anydepth.extras import require
from anydepth.patches import MODEL_RUNNER, SECOND_MODEL_RUNNER
from anydepth.vllm.setup import Setup
from anydepth.vllm.versions import check_version
from anydepth.vllm.worker.runner import GuardedRunner
from anydepth.vllm.worker.runner_state import RunnerState
from anydepth.vllm.worker.second_runner import SecondGuardedRunner

_WORKERS = {
    "cpu": ("vllm.v1.worker.cpu_worker", "CPUWorker"),
    "xpu": ("vllm.v1.worker.xpu_worker", "XPUWorker"),
}


def _platform_worker() -> Any:
    """The worker class that vLLM itself would take here."""
    device = require("vllm.platforms", extra="vllm").current_platform.device_type
    module, name = _WORKERS.get(device, ("vllm.v1.worker.gpu_worker", "Worker"))
    return getattr(require(module, extra="vllm"), name)


class GuardedWorker(_platform_worker()):
    """Give it to vLLM as `worker_cls`."""

    def init_device(self) -> None:
        """Make the model runner, the first or the second one, a guarded one; vLLM has no setting for its class."""
        check_version()
        super().init_device()
        runner = self.model_runner
        runner.anydepth = RunnerState(Setup.of(self.vllm_config))
        second = self.vllm_config.use_v2_model_runner
        ours: Any = SecondGuardedRunner if second else GuardedRunner
        guarded = type(f"Guarded{type(runner).__name__}", (ours, type(runner)), {})
        if second:
            SECOND_MODEL_RUNNER.check()
            SECOND_MODEL_RUNNER.replace(runner, "__class__", guarded)
        else:
            MODEL_RUNNER.check()
            MODEL_RUNNER.replace(runner, "__class__", guarded)

    def compile_or_warm_up_model(self) -> Any:
        """Try hooks once, at the end of vLLM's start, in the pass that it makes for idle engines."""
        times = super().compile_or_warm_up_model()
        self.model_runner.anydepth.prove(self.execute_dummy_batch, self.device)
        return times

    def anydepth_stats(self) -> dict[str, Any]:
        """Seconds spent on reading so far, values read, how, and how far; for benchmarks, by `collective_rpc`."""
        state = self.model_runner.anydepth
        name = None if state.read_out is None else state.read_out.name
        ends = None if state.header_rows is None else state.header_rows.first
        return {"seconds": state.seconds, "checks": state.checks, "read_out": name, "header_ends_at": ends}
