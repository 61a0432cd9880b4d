"""What the guard replaces in vLLM is in the installed version as it was tested."""

import pytest

from anydepth.patches import PATCHES

vllm = pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

OURS = [each for each in PATCHES if each.extra == "vllm"]


@pytest.mark.parametrize("patch", OURS, ids=[each.module for each in OURS])
def test_it_is_there_with_its_parameters(patch):
    assert patch.check().__name__ == patch.module
    assert vllm.__version__.partition("+")[0] == patch.tested
