"""The example of the README prints what the README shows under it, on the demo's model."""

import re
from pathlib import Path

import pytest

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PAGE = Path(__file__).parents[2] / "README.md"
USE = r"<!-- use:start -->\n```python\n(.*?)```\n\n```\n(.*?)```\n<!-- use:end -->"


@pytest.mark.model
def test_the_example_prints_what_is_shown(demo_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(USE, PAGE.read_text(encoding="utf-8"), re.S)
    assert example and MODEL in example[1]
    exec(example[1].replace(MODEL, str(demo_model_dir)), {})
    printed, shown = capsys.readouterr().out.splitlines(), example[2].splitlines()
    assert printed[-1] == shown[-1]
    # The last bits of bfloat16 differ between CPUs, and with them a later word of the answer.
    assert len(printed) == len(shown) and printed[0].split()[:8] == shown[0].split()[:8]
