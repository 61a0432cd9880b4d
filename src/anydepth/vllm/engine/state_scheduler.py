"""Schedule the requests of `VllmBackend`, which ask for hidden states."""

from collections.abc import Iterable
from typing import Any

from anydepth.vllm.engine.positions import Place
from anydepth.vllm.engine.reading_scheduler import ReadingScheduler
from anydepth.vllm.engine.state_files import StateFiles
from anydepth.vllm.wire import Findings


class StateScheduler(ReadingScheduler):
    """The `scheduler_cls` of an engine that collects states. It guards nothing."""

    collects = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._files = StateFiles(self.setup)

    def add_request(self, request: Any) -> None:
        """Note what the request asks for."""
        self._files.add(request)
        super().add_request(request)

    def _unread(self, request_id: str) -> Iterable[Place]:
        return self._files.unread(request_id)

    def _take(self, findings: Findings) -> None:
        self._files.take(findings)
