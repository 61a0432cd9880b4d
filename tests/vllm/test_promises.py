"""The guarantees of the README on a real vLLM engine; `tests/contract/promises.py` states them."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from anydepth.errors import CheckError
from anydepth.templates.template import ChatTemplate
from anydepth.vllm.engine.pending_check import PendingCheck
from tests.contract.hosts import OVERRIDES, REFUSAL, UNRECORDED, Seen, patched, seen_of
from tests.contract.promises import *  # noqa: F403 - the tests themselves

DEFAULTS = {"refusal": REFUSAL, "policy": {"name": "threshold", "threshold": 1.0}}
DETECTORS = {"probe": {}, "cascade": {"detector": "cascade", "band": [0.0, 1.0]}}
"""With this band every check of the cascade has a look-ahead, which a random model never refuses in."""


class Vllm:
    """Answers of vLLM's engine, one of its own for each guard; `more` is what each guard has besides the probe."""

    audits = True

    def __init__(self, engines: Any, probe: Path, more: Mapping[str, Any]) -> None:
        self._engines, self._probe, self._more = engines, probe, more

    def _engine(self, guard: Mapping[str, Any] | None) -> Any:
        table = {"probe": str(self._probe), **self._more, **DEFAULTS, **(guard or {})}
        return self._engines(settings={"guard": table, "overrides": OVERRIDES})

    def answer(
        self, request: str, *, prefill: str | None = None, tokens: int = 20, guard: Mapping[str, Any] | None = None
    ) -> Seen:
        engine = self._engine(guard)
        name = engine.add(self._ids(engine, request, prefill), guard={"checks": True}, max_tokens=tokens)
        left: list[tuple[int, int]] = []

        def note(told: Any) -> None:
            if name in told and told[name].token_ids:
                stops = [each["stop"] for each in engine.records(name) if each["kind"] == "window"]
                left.append((len(told[name].token_ids), max(stops, default=0)))

        told = engine.run(each_step=note)[name]
        halted = told.halted
        record = next((each for each in engine.records(name) if each["kind"] == "answer"), UNRECORDED)
        text = self._text(engine, told.token_ids)
        if halted:
            text += ("\n\n" if text.strip() else "") + REFUSAL  # the front writes it: tests/vllm/test_server.py
        return seen_of(record, text, "content_filter" if halted else told.finish_reason, left)

    def bare(self, request: str, *, prefill: str | None = None, tokens: int = 20) -> str:
        engine = self._engine({"interval": 10})
        ids = self._ids(engine, request, prefill)
        return self._text(engine, engine.answer(ids, guard={"guard": False}, max_tokens=tokens).token_ids)

    def _ids(self, engine: Any, request: str, prefill: str | None) -> list[int]:
        return list(ChatTemplate(engine.tokenizer).prompt(request, prefill=prefill).ids)

    def _text(self, engine: Any, ids: list[int]) -> str:
        return engine.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @contextlib.contextmanager
    def failing_checks(self) -> Iterator[None]:
        whole = PendingCheck.score

        def broken(self: PendingCheck, setup: Any, tokens: Any) -> Any:
            return whole(self, setup, tokens) if self.depth == 0 else CheckError("no state")

        with patched(PendingCheck, "score", broken):
            yield

    @contextlib.contextmanager
    def failing_audit(self) -> Iterator[None]:
        from anydepth.audit.file import JsonlFile

        def full(*_: Any) -> None:
            raise OSError("no room")

        with patched(JsonlFile, "write", full):
            yield


@pytest.fixture(params=DETECTORS.values(), ids=DETECTORS)
def host(request, engines, probe_file) -> Vllm:
    return Vllm(engines, probe_file, request.param)
