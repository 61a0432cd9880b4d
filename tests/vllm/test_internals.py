"""The installed vLLM has all that the plugin uses of it."""

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

import vllm

from anydepth.vllm.internals import missing


def test_nothing_is_missing():
    assert missing(Path(vllm.__file__).parent) == []
