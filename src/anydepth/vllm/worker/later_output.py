"""Put what a step has read beside its tokens when they come to the host, with asynchronous scheduling."""

from typing import TYPE_CHECKING, Any

import torch

from anydepth.extras import require
from anydepth.vllm.wire import ATTRIBUTE

if TYPE_CHECKING:
    from anydepth.vllm.worker.runner_state import Found, RunnerState

AsyncModelRunnerOutput: Any = require("vllm.v1.outputs", extra="vllm").AsyncModelRunnerOutput


class LaterOutput(AsyncModelRunnerOutput):
    """The output of a step that still runs on the device. vLLM calls `get_output` while the next step runs.

    The copy to the host is queued at once, so that it does not wait for the next step.

    Args:
        output: vLLM's own.
        state: The guard's part of the runner.
        found: What the step has read.
    """

    def __init__(self, output: Any, state: "RunnerState", found: "Found") -> None:
        self._output, self._state = output, state
        values, asked, openers = found
        device = None
        if values is not None:
            device = values.values.device
            values.values = values.values.to("cpu", non_blocking=True)
        if openers is not None:
            device = openers.device
            openers = openers.to("cpu", non_blocking=True)
        self._found, self._copied = (values, asked, openers), None
        if device is not None and device.type != "cpu":
            self._copied = torch.Event(device)
            self._copied.record()

    def get_output(self) -> Any:
        """Wait for the step; see vLLM."""
        output = self._output.get_output()
        if self._copied is not None:
            self._copied.synchronize()
        setattr(output, ATTRIBUTE, self._state.findings(self._found))
        return output
