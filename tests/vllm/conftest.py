"""A real vLLM on the CPU, a tiny random model in its format, and a probe whose verdicts are mixed."""

import gc
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def interpret_triton() -> None:
    """Let vLLM's second model runner, which is written in Triton, run where Triton has no compiler: interpreted.

    Nothing of vLLM is replaced: it only finds that there is a Triton for this CPU. Slow, but the real runner.
    """
    assert os.environ.get("TRITON_INTERPRET") == "1", "Triton decides when it is imported, which was before this"
    os.environ["VLLM_CPU_CI_ENV"] = "1"  # no warm-up
    from triton.backends import backends

    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)


if importlib.util.find_spec("vllm") is not None:  # elsewhere these tests are skipped and nothing is set
    os.environ.update(
        {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in the test's process: a start takes seconds
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
    )
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    if os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1":  # make test-vllm RUNNER=second
        interpret_triton()


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/vllm/" in Path(item.path).as_posix():
            item.add_marker(pytest.mark.vllm)


def keep_async_scheduling() -> None:
    """Let an engine on a CPU schedule asynchronously if it is told to; vLLM's platform switches it off there."""
    from vllm.platforms.cpu import CpuPlatform

    update: Any = CpuPlatform.check_and_update_config.__func__
    if hasattr(update, "whole"):
        return

    def keeping(cls: Any, config: Any) -> None:
        wanted = config.scheduler_config.async_scheduling
        update(cls, config)
        config.scheduler_config.async_scheduling = wanted

    keeping.whole = update
    CpuPlatform.check_and_update_config = classmethod(keeping)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    from tests.vllm import model

    return model.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def reference(tiny_folder):
    """The same model in Transformers."""
    from tests.vllm.model import Reference

    return Reference(tiny_folder)


@pytest.fixture(scope="session")
def probe_file(reference, tmp_path_factory) -> Path:
    from tests.vllm import model

    # not in the model's folder: vLLM loads every safetensors file there as weights
    return model.planted_probe(tmp_path_factory.mktemp("probe") / "probe.safetensors", reference)


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def asynchronous(request) -> bool:
    """Whether vLLM schedules a step while the one before it runs."""
    return request.param


@pytest.fixture(scope="module")
def engines(asynchronous, tiny_folder, probe_file, tmp_path_factory):
    """`engines(guard={...}, **options of LLM)`: one engine at a time, the same one for the same options."""
    made: dict[str, Any] = {}
    keep_async_scheduling()

    def engine(*, folder: Path = tiny_folder, settings: dict | None = None, extra: dict | None = None, **options: Any):
        from tests.vllm.engine import Engine

        options = {"async_scheduling": asynchronous, **options}
        key = repr((folder, settings, extra, options))
        if key not in made:
            made.clear()
            gc.collect()
            table = {"guard": {"probe": str(probe_file)}, **(settings or {})}
            audit = tmp_path_factory.mktemp("audit") / "audit.jsonl"
            made[key] = Engine(folder, table, audit, extra or {}, options)
        return made[key]

    yield engine
    made.clear()
    gc.collect()
