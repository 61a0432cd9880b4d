"""What every test shares: no network, one thread, the longest files first, and the model for tests marked `model`."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fetched import alone

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Before torch and numpy are imported, and for every process that a test starts: on matrices that are 32 wide, more
# threads only wait for one another, and pytest's workers share the cores already.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
LONGEST = (
    "contract/test_collect_real.py",
    "contract/test_families.py",
    "browser/test_report.py",
    "contract/test_demo_model.py",
    "integrations/test_llm.py",
    "server/test_litellm.py",
    "server/test_clients.py",
    "integrations/test_agents.py",
    "server/test_faults.py",
    "contract/test_generation_config.py",
    "contract/test_eval.py",
    "unit/evals/test_erosion.py",
    "contract/test_replay_equals_guard.py",
    "unit/evals/test_attacks.py",
    "unit/evals/test_gcg.py",
    "unit/evals/test_adaptive.py",
    "server/test_model.py",
    "contract/test_cache_kinds.py",
)
"""Files that take longest, which workers begin with: one that came last would leave the other worker without work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a server that is started in a test's own process does to the loggers of the whole process."""
    root, others = logging.getLogger(), [logging.getLogger(name) for name in ("anydepth.driver", "uvicorn.access")]
    handlers, levels = root.handlers[:], [(each, each.level) for each in (root, *others)]
    yield
    for logger, level in levels:
        logger.setLevel(level)
    kept = (each for each in root.handlers if each in handlers or type(each).__module__.startswith("_pytest"))
    root.handlers[:] = list(kept)


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """Folder of the small chat model of the demo, fetched once per machine, by one worker at a time."""
    script = ROOT / "scripts" / "fetch_demo_model.py"
    with alone("demo-model"):
        done = subprocess.run([sys.executable, script, "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{script.name} exited with {done.returncode}:\n{done.stderr}", pytrace=False)
    return Path(done.stdout.strip())
