"""The detector of docs/detectors.md, as a user would copy it: scanned packed, read inside a prefill, served."""

import re
from pathlib import Path
from typing import Any

import pytest

from anydepth import Every, Guard, Threshold
from anydepth.detectors import declares_reads
from anydepth.server.engine.engine import Job
from anydepth.server.engine.transformers_engine import TransformersEngine
from anydepth.types import Finished
from tests.contract.contract import backend_of

PAGE = Path(__file__).parents[2] / "docs" / "detectors.md"
PREFILL = " ".join(f"w{n}" for n in range(20, 50))


@pytest.fixture(scope="module")
def guard() -> Guard:
    example = re.search(r"<!-- own-detector:start -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert example
    names: dict[str, Any] = {}
    exec(example[1], names)
    return Guard.from_backend(backend_of("Llama"), names["Length"](), policy=Threshold(1.0), schedule=Every(10))


def test_it_declares_its_reads(guard: Guard) -> None:
    assert declares_reads(guard.detector)


def test_a_scan_takes_one_pass_and_gives_what_the_guard_gives(guard: Guard) -> None:
    answer = guard.generate("w1 w2", max_new_tokens=40, do_sample=False)
    scan = guard.scan("w1 w2", answer.text)
    assert scan.method == "packed"
    live = {check.depth: check.score for check in answer.checks}
    assert {check.depth: check.score for check in scan.checks} == pytest.approx(live, abs=1e-4)


async def test_the_server_reads_inside_a_prefill_as_the_library_does(guard: Guard) -> None:
    prompt = guard.template.prompt("w1 w2", prefill=PREFILL)
    expected = guard.generate("w1 w2", prefill=PREFILL, max_new_tokens=20, do_sample=False)
    assert [check.depth for check in expected.checks] == [0, 1, 2, 4, 8, 10, 20, 30, 31, 32, 34, 38, 40, 50]
    engine = TransformersEngine(guard, model="tiny")
    await engine.start()
    events = [event async for event in engine.submit(Job(prompt, guard.config, 20))]
    await engine.stop()
    served = events[-1]
    assert isinstance(served, Finished) and not expected.halted
    assert [check.depth for check in served.answer.checks] == [check.depth for check in expected.checks]
