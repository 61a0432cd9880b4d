"""An answer that has begun has a record, however it ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from anydepth import Guard
from anydepth.audit.file import JsonlFile
from anydepth.audit.trail import Audit
from anydepth.audit.verify import verify_audit
from anydepth.errors import PromptError
from anydepth.server.answer.compose import Reading
from anydepth.server.engine.engine import Job
from anydepth.server.engine.transformers_engine import TransformersEngine
from anydepth.server.service import Ask, Service
from anydepth.settings import parse_settings
from anydepth.testing import END, ScriptedBackend, ScriptedDetector


class Breaking(ScriptedBackend):
    """A backend that refuses to go on after its first tokens, with an error that otherwise means a bad request."""

    def open(self, *arguments: Any, **options: Any) -> Any:
        session = super().open(*arguments, **options)
        decode, calls = session.decode, []

        def broken(n: int) -> Any:
            calls.append(n)
            if len(calls) > 2:
                raise PromptError("the context is full")
            return decode(n)

        session.decode = broken
        return session


async def test_an_answer_that_breaks_after_it_began_leaves_a_record(tmp_path: Path) -> None:
    guard = Guard.from_backend(Breaking(["hello world, this is an answer"]), ScriptedDetector({0: 0.01}))
    engine = TransformersEngine(guard, model="m", end_token_ids=frozenset({END}))
    path = tmp_path / "audit.jsonl"
    audit = Audit(JsonlFile(path, 10**6, 2))
    service = Service(engine, parse_settings({}), audit)
    prompt = engine.facts.template.prompt("hi")
    ask = Ask("chat", (Job(prompt, engine.facts.guard, 100),), (Reading("REFUSED"),))
    await engine.start()
    with pytest.raises(PromptError):
        async for _ in service.run(ask):
            pass
    await engine.stop()
    audit.close()
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [each["outcome"] for each in records if each["kind"] == "answer"] == ["error"]
    report = verify_audit(path)
    assert report.ok and not report.unfinished
