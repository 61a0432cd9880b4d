"""`anydepth inspect` on a made-up backend."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from anydepth.backends.base import ModelIdentity
from anydepth.cli import load
from anydepth.template import Header
from tests.unit.cli.conftest import Run


def backend(*, packed_reason: str | None = None) -> Any:
    return SimpleNamespace(
        identity=ModelIdentity("org/m", "abc123", "llama", 576, 30, "f00d"),
        header=Header((2, 198, 1, 520), 3, (), ("<|im_end|>", "\\n", "<|im_start|>", "assistant")),
        template=SimpleNamespace(source="derived", digest="d1", channels=("thinking", "answer")),
        describe=lambda: {
            "layers": 30,
            "hidden_size": 576,
            "default_site": "15.input_layernorm",
            "context_length": 8192,
            "cache": [{"layer": "DynamicLayer", "fork": "shared", "count": 30}],
            "packed": packed_reason is None,
            "packed_reason": packed_reason,
        },
    )


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "open_backend", lambda model: backend())
    monkeypatch.setattr(load, "has_shipped_probe", lambda backend: True)


def test_marks_the_read_token(run: Run, opened: None) -> None:
    result = run("inspect", "org/m")
    assert result.exit_code == 0, result.stderr
    marked = [line for line in result.stdout.splitlines() if "<- read token" in line]
    assert len(marked) == 1
    assert "520  assistant" in marked[0]
    for fact in ("30 x DynamicLayer, fork shared", "thinking, answer", "15.input_layernorm", "revision abc123"):
        assert fact in result.stdout


def test_says_why_a_scan_takes_many_passes(run: Run, opened: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "open_backend", lambda model: backend(packed_reason="layer 3 is recurrent"))
    monkeypatch.setattr(load, "has_shipped_probe", lambda backend: False)
    result = run("inspect", "org/m")
    assert "layer 3 is recurrent" in result.stdout
    assert "pass --probe" in result.stdout


def test_json(run: Run, opened: None) -> None:
    record = json.loads(run("inspect", "org/m", "--json").stdout)
    assert record["header"][3] == {"id": 520, "token": "assistant", "read": True}
    assert record["header"][0]["read"] is False
    expected = {
        "model": "org/m",
        "revision": "abc123",
        "model_type": "llama",
        "layers": 30,
        "hidden_size": 576,
        "default_site": "15.input_layernorm",
        "published_site": None,
        "channels": ["thinking", "answer"],
        "header_source": "derived",
        "packed": True,
        "shipped_probe": True,
    }
    assert {key: record[key] for key in expected} == expected
