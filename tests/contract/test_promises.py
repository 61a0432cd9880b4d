"""The guarantees of the README on the library and the server."""

from pathlib import Path

import pytest

from tests.contract.hosts import Host, Library, Server
from tests.contract.promises import *  # noqa: F403 - the tests themselves
from tests.vllm import model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def probe(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.planted_probe(tmp_path_factory.mktemp("probe") / "probe.safetensors", model.Reference(folder))


@pytest.fixture(scope="module", params=["library", "server"])
def host(request: pytest.FixtureRequest, folder: Path, probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    if request.param == "library":
        return Library(folder, probe)
    return Server(folder, probe, tmp_path_factory.mktemp("audit"))
