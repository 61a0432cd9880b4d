"""A real vLLM on the CPU, a tiny random model in its format, and a probe whose verdicts are mixed."""

import gc
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

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


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/vllm/" in Path(item.path).as_posix():
            item.add_marker(pytest.mark.vllm)


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


@pytest.fixture(scope="module")
def engines(tiny_folder, probe_file, tmp_path_factory):
    """`engines(guard={...}, **options of LLM)`: one engine at a time, the same one for the same options."""
    made: dict[str, Any] = {}

    def engine(*, folder: Path = tiny_folder, settings: dict | None = None, extra: dict | None = None, **options: Any):
        from tests.vllm.engine import Engine

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
