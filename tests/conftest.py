"""What every test shares: no network, and the demo's model for tests marked `model`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """Folder of the small chat model of the demo, fetched once a machine."""
    script = ROOT / "scripts" / "fetch_demo_model.py"
    done = subprocess.run([sys.executable, script, "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{script.name} exited with {done.returncode}:\n{done.stderr}", pytrace=False)
    return Path(done.stdout.strip())
