"""Have the worker read hidden states in the passes that vLLM's scheduler makes up."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from anydepth.errors import ConfigError
from anydepth.extras import require
from anydepth.vllm.engine.positions import Place
from anydepth.vllm.limits import check_engine
from anydepth.vllm.setup import Setup
from anydepth.vllm.versions import check_version
from anydepth.vllm.wire import ATTRIBUTE, Findings, Orders, Span

_base: Any = require("vllm.v1.core.sched.scheduler", extra="vllm")


class PrefixLimit:
    """A request as the prefix cache is to see it: one whose cached part ends before position `limit`."""

    def __init__(self, request: Any, limit: int) -> None:
        self._request, self.num_tokens = request, min(limit + 1, request.num_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


class ReadingScheduler(_base.Scheduler):
    """What the guarding and the state-collecting scheduler share.

    Attributes:
        collects: True if the scheduler is for engines that collect states instead of guarding answers.
    """

    collects: ClassVar[bool]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_version()
        self.setup = Setup.of(self.vllm_config)
        if self.setup.options.collects != self.collects:
            raise ConfigError(
                f"scheduler_cls is {type(self).__name__}, and additional_config "
                f"{'guards answers' if self.collects else 'collects states'}; start vLLM with the options of "
                "anydepth.vllm.launch.engine_options"
            )
        check_engine(self, self.setup)

    @abstractmethod
    def _unread(self, request_id: str) -> Iterable[Place]:
        """The places of a request that have yet to be read."""

    @abstractmethod
    def _unread_tokens(self, request_id: str) -> range:
        """Positions in a request of the answer's tokens that have yet to be read for means; empty if there are none."""

    @abstractmethod
    def _take(self, findings: Findings) -> None:
        """Keep what the worker has read in a step."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule a step, with the places that it computes as orders for the worker."""
        output = super().schedule(*args, **kwargs)
        orders = Orders()
        for name, count in output.num_scheduled_tokens.items():
            begin = self.requests[name].num_computed_tokens - count  # vLLM has counted the step's tokens already
            for position, index in self._unread(name):
                if begin <= position < begin + count:
                    orders.states[name, position, index] = position - begin
            unread = self._unread_tokens(name)
            if unread and begin <= unread.start < begin + count:
                stop = min(unread.stop, begin + count)
                orders.spans[name] = Span(unread.start, unread.start - begin, stop - unread.start)
        if orders:
            setattr(output, ATTRIBUTE, orders)
        return output

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        """Let no cached prefix reach beyond the first state that has yet to be read: cached tokens are not computed."""
        unread = [position for position, _ in self._unread(request.request_id)]
        first = min([*unread, *self._unread_tokens(request.request_id)[:1]], default=None)
        return super()._get_local_prefix_cache_hit(request if first is None else PrefixLimit(request, first))

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        """Keep what was read, then go on as vLLM does."""
        self._take(getattr(model_runner_output, ATTRIBUTE, None) or Findings())
        return super().update_from_output(scheduler_output, model_runner_output)
