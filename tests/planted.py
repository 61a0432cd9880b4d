"""Checks whose states differ by label along a known direction."""

import numpy as np

from anydepth.conversations.dataset import digest
from anydepth.probes.states.store import Checks

WIDTH = 12
READS = 2


def direction(seed: int = 7) -> np.ndarray:
    """The planted direction, of length 1, `[READS * WIDTH]`."""
    found = np.random.default_rng(seed).standard_normal(READS * WIDTH)
    return found / np.linalg.norm(found)


def planted(
    prompts: int = 60,
    *,
    depths: tuple[int, ...] = (0, 4, 25, 50),
    gap: float = 4.0,
    split: str = "train",
    seed: int = 0,
) -> Checks:
    """One answer a prompt, every second one harmful, with unequal scales and offsets of the single dimensions."""
    rng = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(prompts), len(depths))
    harmful = numbers % 2 == 1
    scale, offset = rng.uniform(0.5, 3, READS * WIDTH), rng.uniform(-20, 20, READS * WIDTH)
    rng = np.random.default_rng(list(split.encode()))
    noise = rng.standard_normal((len(numbers), READS * WIDTH))
    along = np.where(harmful, gap / 2, -gap / 2)[:, None] * direction()
    states = ((noise + along) * scale + offset).astype(np.float32).reshape(-1, READS, WIDTH)
    columns = {
        "id": np.array([f"c{number}" for number in numbers]),
        "answer": np.array([digest(f"answer {split} {number}") for number in numbers]),
        "split": np.full(len(numbers), split),
        "source": np.array([f"s{number % 3}" for number in numbers]),
        "label": np.where(harmful, "harmful", "benign"),
        "prompt_key": np.array([digest(f"prompt {split} {number}") for number in numbers]),
        "depth": np.tile(np.array(depths), prompts),
    }
    return Checks(columns, states)
