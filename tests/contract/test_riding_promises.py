"""The guarantees of the README where checks ride in the decode step."""

from typing import Any

import pytest

from tests.contract.hosts import Host, Library, Server
from tests.contract.promises import *  # noqa: F403 - the tests themselves
from tests.vllm import model

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {"config": "Qwen3Config"},
    # answers grow out of the window
    "Gemma3": {
        "config": "Gemma3TextConfig", "sliding_window": 24,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=[*FAMILIES, "Llama, served"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    family, _, served = request.param.partition(", ")
    folder = model.build(tmp_path_factory.mktemp("tiny"), family, **FAMILIES[family])
    # the last token before an end of turn cannot be read again beyond a window, on a fork either
    reads = tuple(read.replace("content", "1") if family == "Gemma3" else read for read in model.READS)
    file = tmp_path_factory.mktemp("probe") / "probe.safetensors"
    probe = model.planted_probe(file, model.Reference(folder), reads)
    if served:
        return Server(folder, probe, tmp_path_factory.mktemp("audit"), ride="always")
    return Library(folder, probe, ride="always")
