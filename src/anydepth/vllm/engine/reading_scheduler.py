"""Have the worker read hidden states in the passes that vLLM's scheduler makes up."""

from abc import abstractmethod
from collections.abc import Iterable
from functools import cache
from inspect import signature
from typing import Any, ClassVar

from anydepth.errors import ConfigError
from anydepth.extras import require
from anydepth.vllm.engine.positions import Place
from anydepth.vllm.limits import check_engine
from anydepth.vllm.setup import Setup
from anydepth.vllm.versions import check_version
from anydepth.vllm.wire import ATTRIBUTE, Findings, Orders, Span

_base: Any = require("vllm.v1.core.sched.async_scheduler", extra="vllm")


@cache
def takes_limit() -> bool:
    """Whether vLLM asks its prefix cache for a hit of at most so many tokens, which it does since 0.33."""
    return "max_cache_hit_length" in signature(_base.Scheduler._get_local_prefix_cache_hit).parameters


class PrefixLimit:
    """A request as the prefix cache of vLLM 0.32 is to see it: one whose cached part ends before position `limit`."""

    def __init__(self, request: Any, limit: int) -> None:
        self._request, self.num_tokens = request, min(limit + 1, request.num_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


class ReadingScheduler(_base.AsyncScheduler):
    """What the guarding and the state-collecting scheduler share.

    The base is vLLM's scheduler for asynchronous scheduling. It also works without: then no token is under way when it
    schedules.

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
    def _take(self, findings: Findings, step: Any) -> None:
        """Keep what the worker has read in a step; `step` is vLLM's record of it."""

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
            drafts = len(output.scheduled_spec_decode_tokens.get(name, ()))
            first = max(begin, unread.start)  # what is before it is read by a step that is under way
            if (size := min(unread.stop, begin + count - drafts) - first) > 0:
                orders.spans[name] = Span(first, first - begin, size)
        if orders:
            setattr(output, ATTRIBUTE, orders)
        return output

    def _get_local_prefix_cache_hit(self, request: Any, max_cache_hit_length: int | None = None) -> Any:
        """Let no cached prefix reach beyond the first state that has yet to be read: cached tokens are not computed."""
        unread = [position for position, _ in self._unread(request.request_id)]
        ends = [*unread, *self._unread_tokens(request.request_id)[:1]]
        given = [] if max_cache_hit_length is None else [max_cache_hit_length]
        limit = min([*ends, *given], default=None)
        if takes_limit():
            return super()._get_local_prefix_cache_hit(request, limit)
        return super()._get_local_prefix_cache_hit(request if limit is None else PrefixLimit(request, limit))

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        """Keep what was read, then go on as vLLM does."""
        self._take(getattr(model_runner_output, ATTRIBUTE, None) or Findings(), scheduler_output)
        return super().update_from_output(scheduler_output, model_runner_output)
