"""Collect with many workers: Ray hands out the groups of answers, and every worker writes its own shards."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anydepth.backends.protocol import Backend
from anydepth.conversations.dataset import Conversation
from anydepth.errors import AnydepthError, ConfigError, ModelError
from anydepth.extras import require
from anydepth.probes.states.collect import Collected, Group, collect_group, work_for
from anydepth.probes.states.manifest import manifest_for
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.store import StateStore

_TRIES_AGAIN = 3
"""How often a worker that died is started anew, and its group handed out again."""


@dataclass(frozen=True, slots=True)
class Workers:
    """How many processes hold the model, and what each of them gets.

    Attributes:
        count: Number of workers.
        cpus: Cores of each; None shares the cluster's equally.
        gpus: Graphics cards of each.
    """

    count: int = 2
    cpus: int | None = None
    gpus: float = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"workers is {self.count}; it must be at least 1")


_TWO = Workers()


def load_backend(model: str, **options: Any) -> Backend:
    """Load a Transformers model in the process that calls this; with `functools.partial` a worker can be sent it."""
    from anydepth.backends.transformers import load

    return load(model, **options)


def collect_with_ray(
    open_backend: Callable[[], Backend],
    conversations: Sequence[Conversation],
    path: str | Path,
    plan: CollectPlan | Callable[[Backend], CollectPlan],
    *,
    workers: Workers = _TWO,
    adapter: str | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Collected:
    """Do what `collect` does, with the same shards, by several processes.

    Args:
        open_backend: Loads the model; called in each worker, e.g. `partial(load_backend, "org/model")`.
        conversations: Answers to read.
        path: Folder of the store, which every worker can write to; it is made if it is not there.
        plan: What to read, or a function that makes the plan for the loaded model.
        workers: Number of processes.
        adapter: The PEFT adapter that `open_backend` loads, for the manifest.
        progress: Called after each group with (answers done, answers in all, tokens run).

    Raises:
        MissingExtra: Ray is not installed.
        AnydepthError: Whatever `collect` raises, in whichever process.
    """
    ray = require("ray", extra="ray")
    pool = require("ray.util", extra="ray").ActorPool
    path = Path(path).absolute()
    with _cluster(ray, workers):
        cpus = workers.cpus or max(1, int(ray.cluster_resources().get("CPU", 1)) // workers.count)
        share = {"num_cpus": cpus, "num_gpus": workers.gpus}
        # the store is made first, by one worker: what is wrong with model, sites or store is said once and at once
        made: CollectPlan = ray.get(ray.remote(**share)(_make_store).remote(open_backend, plan, path, adapter))
        store = StateStore(path)
        work = work_for(conversations, made, store.present())
        report = work.begin(store)
        if progress is not None:
            progress(report.done, work.answers, 0)
        if not work.groups:
            return report
        worker = ray.remote(max_restarts=_TRIES_AGAIN, max_task_retries=_TRIES_AGAIN, **share)(_Collector)
        count = min(workers.count, len(work.groups))
        actors = [worker.remote(open_backend, path, made) for _ in range(count)]
        try:
            for found in pool(actors).map_unordered(lambda actor, group: actor.collect.remote(group), work.groups):
                report.add(found)
                if progress is not None:
                    progress(report.done, work.answers, report.tokens)
        finally:
            for actor in actors:
                ray.kill(actor)
    return report


class _Collector:
    """A worker: it loads the model once, and collects the groups that it is handed."""

    def __init__(self, open_backend: Callable[[], Backend], path: Path, plan: CollectPlan) -> None:
        self.backend, self.store, self.plan = open_backend(), StateStore(path), plan

    def collect(self, group: Group) -> Collected:
        """Read the answers of `group` and write their shard."""
        return collect_group(self.backend, group, self.store, self.plan)


def _make_store(
    open_backend: Callable[[], Backend],
    plan: CollectPlan | Callable[[Backend], CollectPlan],
    path: Path,
    adapter: str | None,
) -> CollectPlan:
    backend = open_backend()
    made = plan if isinstance(plan, CollectPlan) else plan(backend)
    StateStore.create(path, manifest_for(backend, made, adapter=adapter))
    return made


def _own(error: BaseException) -> AnydepthError:
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, AnydepthError) and not isinstance(inner, AnydepthError):
            return cause
        cause = inner if inner is not cause else None
    last = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return ModelError(f"a Ray worker failed: {last}; its log is in the session's folder, /tmp/ray by default")


@contextmanager
def _cluster(ray: Any, workers: Workers) -> Iterator[None]:
    """The cluster that is connected already or that RAY_ADDRESS names, else one of this machine, ended afterwards.

    What a worker raised comes out as the worker's own AnydepthError.
    """
    own = not ray.is_initialized()
    try:
        if own and os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False)
        elif own:
            cpus = max(os.cpu_count() or 1, workers.count * (workers.cpus or 1))
            ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield
    except ray.exceptions.RayError as error:
        raise _own(error) from error
    finally:
        if own and ray.is_initialized():
            ray.shutdown()
