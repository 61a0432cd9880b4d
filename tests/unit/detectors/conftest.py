"""A scripted engine, which replies what a test tells it to and counts what it was asked, and scripted endpoints."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anydepth.backends.protocol import Capability, CheckPoint, ModelIdentity, Read, Site
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import UnsupportedModel
from tests.fake_guard import FakeGuard

WIDTH = 6
VOCABULARY = ["Sorry", "Unfortunately", "I", "Sure", "Here", "The", "S", "other"]


class ScriptedSession:
    rows = 8

    def __init__(self, *, states: Any = None, texts: Sequence[str] = (), logprobs: Any = None) -> None:
        self.states, self.texts, self.logprobs = states, texts, logprobs
        self.asked: list[tuple[CheckPoint, ...]] = []
        self.written: list[str] = []

    def hidden_states(self, points: Sequence[CheckPoint], reads: Sequence[Read]) -> np.ndarray:
        self.asked.append(tuple(points))
        self.reads = tuple(reads)
        return np.asarray(self.states, dtype=np.float32)

    def look_ahead(
        self, points: Sequence[CheckPoint], max_new_tokens: int, decided: Callable[[str], bool]
    ) -> list[str]:
        """Write each text word by word, as an engine does, until it is decided."""
        self.asked.append(tuple(points))
        self.written = []
        for point in points:
            text = ""
            for word in self.texts[point.row].split(" ")[:max_new_tokens]:
                text = f"{text} {word}" if text else word
                if decided(text):
                    break
            self.written.append(text)
        return self.written

    def next_token_logprobs(self, points: Sequence[CheckPoint]) -> np.ndarray:
        self.asked.append(tuple(points))
        return np.asarray(self.logprobs, dtype=np.float32)


@dataclass
class ScriptedBackend:
    identity: ModelIdentity
    header: Any = field(default_factory=lambda: SimpleNamespace(ids=(7, 8, 9, 10), read_index=2, probe_ids=(7, 8, 9)))
    template: Any = field(default_factory=lambda: SimpleNamespace(digest="digest-1"))
    capabilities: frozenset[Capability] = frozenset(Capability)
    blocks: int = 4
    vocabulary: Sequence[str] = tuple(VOCABULARY)

    def check_site(self, site: Site) -> None:
        if site.block >= self.blocks:
            raise UnsupportedModel(f"there is no block {site.block}")

    def first_token_ids(self, texts: Sequence[str]) -> list[int]:
        """The longest entry of the vocabulary that the text begins with; the last entry stands for all others."""
        known = [[word for word in self.vocabulary[:-1] if text.startswith(word)] for text in texts]
        return [self.vocabulary.index(max(words, key=len)) if words else len(self.vocabulary) - 1 for words in known]


@pytest.fixture
def identity() -> ModelIdentity:
    return ModelIdentity("org/tiny", "abc", "llama", WIDTH, 4, "fingerprint-1")


@pytest.fixture
def backend(identity: ModelIdentity) -> ScriptedBackend:
    return ScriptedBackend(identity)


@pytest.fixture
def card(identity: ModelIdentity) -> ProbeCard:
    return ProbeCard(
        model=identity,
        header_ids=(7, 8, 9, 10),
        reads=(Read(Site(3), 2),),
        template_digest="digest-1",
        dtype="bfloat16",
        policy={"name": "ewma", "alpha": 0.5, "threshold": 0.7},
        calibration={"target": 0.01, "achieved": 0.008, "interval": [0.002, 0.02], "data": {"answers": 500}},
        sources=({"name": "some-set", "licence": "MIT"},),
        created="2025-11-22",
        versions={"numpy": "2.0"},
        seed=0,
        notes="für einen Test",
    )


@pytest.fixture
def probe(card: ProbeCard) -> LinearProbe:
    return LinearProbe(np.arange(WIDTH) / 10, -0.25, card)


@pytest.fixture
def points() -> list[CheckPoint]:
    return [CheckPoint(0, 0), CheckPoint(1, 25), CheckPoint(2, 50)]


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeGuard]]:
    """Starts endpoints of a guard model, with the fields of `FakeGuard`, and closes them."""
    running: list[FakeGuard] = []

    def start(**fields: Any) -> FakeGuard:
        running.append(FakeGuard(**fields))
        return running[-1]

    yield start
    for each in running:
        each.close()
