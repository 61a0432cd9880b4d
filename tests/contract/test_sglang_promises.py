"""The guarantees of the README on answers that an SGLang server writes; the server is `tests/fake_sglang.py`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from anydepth import Guard, LinearProbe
from anydepth.backends.sglang import SglangBackend
from tests.contract.hosts import Library
from tests.contract.promises import *  # noqa: F403 - the tests themselves
from tests.fake_sglang import FakeSglang
from tests.vllm import model

READS = ("1.input_layernorm@2", "3.input_layernorm@2")


class Sglang(Library):
    """`Guard` over an SGLang server."""

    def __init__(self, backend: SglangBackend, probe: Path) -> None:
        self._probe = probe
        self._guard = Guard.from_backend(backend, LinearProbe.load(probe))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sglang]:
    folder = model.build(tmp_path_factory.mktemp("tiny"))
    path = tmp_path_factory.mktemp("probe") / "probe.safetensors"
    probe = model.planted_probe(path, model.Reference(folder), READS)
    fake = FakeSglang(folder, (0, 2))
    yield Sglang(SglangBackend(fake.url, folder), probe)
    fake.close()
