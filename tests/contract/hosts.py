"""The hosts of the guard, each asked in its own way and heard in one: the library, the server, vLLM."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from anydepth import Guard, LinearProbe
from anydepth.errors import CheckError
from anydepth.settings import parse_settings
from anydepth.types import Checked, Event, Finished, Halted, Released

REFUSAL = "No, thanks."
UNRECORDED: Mapping[str, Any] = {
    "checks": [], "windows": [], "verdict": None, "generated_tokens": None, "prefill_tokens": 0
}  # fmt: skip
OVERRIDES = {"release": ["hold", "eager", "monitor"], "checks": True}


@dataclass
class Seen:
    """What a client got of one answer, and what the guard's account says of it.

    Attributes:
        text: The answer, the refusal included.
        finish_reason: Why it ended.
        checks: Depth and kind of error (None if there was none) of each check, in order.
        scores: Score per depth, of the checks that did not fail.
        windows: Start, stop, depth of the check that covers it, and state (`released`, `withheld`) of each window.
        generated: Tokens that the model generated.
        prefill: Tokens of the client's prefill.
        reason: Why the verdict is what it is.
        left: For each piece of the stream in turn: tokens that have left by then, and the deepest check by then.
        calls: The tool calls of each piece of the stream that had some, as the API writes them.
    """

    text: str
    finish_reason: str
    checks: list[tuple[int, str | None]]
    scores: dict[int, float]
    windows: list[tuple[int, int, int | None, str]]
    generated: int | None
    prefill: int
    reason: str | None
    left: list[tuple[int, int]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def depths(self) -> list[int]:
        return [depth for depth, _ in self.checks]

    @property
    def halted(self) -> bool:
        return self.finish_reason == "content_filter"


class Host(Protocol):
    """Something that answers under guard."""

    audits: bool

    def answer(
        self, request: str, *, prefill: str | None = None, tokens: int = 20, guard: Mapping[str, Any] | None = None
    ) -> Seen:
        """Answer greedily; `guard` has keys of `[guard]` in guard.toml."""
        ...

    def bare(self, request: str, *, prefill: str | None = None, tokens: int = 20) -> str:
        """The text of the unguarded model."""
        ...

    def failing_checks(self) -> contextlib.AbstractContextManager[None]:
        """Let every check fail behind depth 0."""
        ...

    def failing_audit(self) -> contextlib.AbstractContextManager[None]:
        """Let the audit trail be unwritable."""
        ...


def settings_of(probe: Path, audit: Path, guard: Mapping[str, Any] | None) -> Any:
    """The settings of a host; one threshold that nothing reaches unless `guard` has a policy."""
    table = {"probe": str(probe), "refusal": REFUSAL, "policy": {"name": "threshold", "threshold": 1.0}}
    return parse_settings(
        {
            "guard": {**table, **(guard or {})},
            "overrides": OVERRIDES,
            "audit": {"kind": "jsonl", "path": str(audit)},
            "limits": {"max_tokens": 200},
        }
    )


@contextlib.contextmanager
def patched(target: Any, name: str, value: Any) -> Iterator[None]:
    """Put `value` in place of an attribute for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, value)
        yield


class Library:
    """`Guard` itself."""

    audits = False

    def __init__(self, folder: Path, probe: Path, ride: str = "never") -> None:
        self._probe, self._folder, self._ride = probe, folder, ride
        self._guard = Guard.from_pretrained(folder, probe=probe, ride=ride)

    def answer(
        self, request: str, *, prefill: str | None = None, tokens: int = 20, guard: Mapping[str, Any] | None = None
    ) -> Seen:
        options = settings_of(self._probe, Path("unused"), guard).guard.guard_options()
        events = self._guard.with_options(**options).stream(
            request, prefill=prefill, max_new_tokens=tokens, do_sample=False
        )
        return self._seen(events)

    @staticmethod
    def _seen(events: Iterator[Event]) -> Seen:
        """What a client gets of these events."""
        left, deepest, gone = [], 0, 0
        for event in events:
            if isinstance(event, Checked):
                deepest = max(deepest, event.check.depth)
            elif isinstance(event, Released):
                gone += len(event.token_ids)
                left.append((gone, deepest))
            elif isinstance(event, Halted):
                assert event.refusal == REFUSAL
            elif isinstance(event, Finished):
                answer = event.answer
        return Seen(
            answer.text,
            answer.finish_reason,
            [(check.depth, check.error and check.error.partition(":")[0]) for check in answer.checks],
            {check.depth: check.score for check in answer.checks if check.error is None},
            [(each.start, each.stop, each.checked_at, each.state) for each in answer.windows],
            answer.generated_tokens,
            answer.prefill_tokens,
            answer.verdict.reason,
            left,
        )

    def bare(self, request: str, *, prefill: str | None = None, tokens: int = 20) -> str:
        return self._guard.unguarded(request, prefill=prefill, max_new_tokens=tokens, do_sample=False)

    @contextlib.contextmanager
    def failing_checks(self) -> Iterator[None]:
        whole = LinearProbe.score_each
        first: list[bool] = []

        def broken(self: LinearProbe, states: Any) -> Any:
            if not first:
                first.append(True)
                return whole(self, states)
            return [CheckError("no state") for _ in states]

        with patched(LinearProbe, "score_each", broken):
            yield

    def failing_audit(self) -> contextlib.AbstractContextManager[None]:
        raise AssertionError("the library keeps no audit trail")


class Server(Library):
    """`anydepth serve` with the engine of Transformers, asked over HTTP."""

    audits = True

    def __init__(self, folder: Path, probe: Path, audits: Path, ride: str = "never") -> None:
        super().__init__(folder, probe, ride)
        self._audits, self._count = audits, 0

    def answer(
        self,
        request: str,
        *,
        prefill: str | None = None,
        tokens: int = 20,
        guard: Mapping[str, Any] | None = None,
        tools: Sequence[str] = (),
    ) -> Seen:
        import json

        from starlette.testclient import TestClient

        from anydepth.audit.reading import read_records
        from anydepth.audit.trail import open_audit
        from anydepth.cli.serve import _engine
        from anydepth.server.http.app import build_app
        from anydepth.server.service import Service

        self._count += 1
        audit = self._audits / f"audit{self._count}.jsonl"
        settings = settings_of(self._probe, audit, guard)
        served = {"path": str(self._folder), "name": "tiny", "ride": self._ride}
        settings = settings.model_copy(update={"model": settings.model.model_copy(update=served)})
        messages = [{"role": "user", "content": request}]
        messages += [{"role": "assistant", "content": prefill}] if prefill else []
        body = {"model": "tiny", "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}
        if tools:
            body["tools"] = [{"type": "function", "function": {"name": name}} for name in tools]
            settings = settings.model_copy(update={"tools": settings.tools.model_copy(update={"format": "hermes"})})
        pieces: list[str] = []
        calls: list[dict[str, Any]] = []
        left, deepest, finish = [], 0, ""
        service = Service(_engine(settings, None, None), settings, open_audit(settings.audit))
        with TestClient(build_app(service, [])) as http:
            reply = http.post("/v1/chat/completions", json={**body, "anydepth": {"checks": True}})
        assert reply.status_code == 200, reply.text
        for line in reply.text.splitlines():
            if not line.startswith("data: {"):
                continue
            choice = json.loads(line.removeprefix("data: "))["choices"][0]
            told = choice.get("anydepth") or {}
            deepest = max(deepest, told.get("check", {}).get("depth", 0))
            if text := choice["delta"].get("content"):
                pieces.append(text)
                if "depth" in told and not choice["finish_reason"]:
                    left.append((told["depth"] - self._prefill_tokens(request, prefill), deepest))
            calls += choice["delta"].get("tool_calls") or []
            finish = choice["finish_reason"] or finish
        record = next((each for each in read_records(audit) if each["kind"] == "answer"), UNRECORDED)
        return replace(seen_of(record, "".join(pieces), finish, left), calls=calls)

    def _prefill_tokens(self, request: str, prefill: str | None) -> int:
        return self._guard.template.prompt(request, prefill=prefill).prefill

    @contextlib.contextmanager
    def failing_audit(self) -> Iterator[None]:
        from anydepth.audit.file import JsonlFile

        def full(*_: Any) -> None:
            raise OSError("no room")

        with patched(JsonlFile, "write", full):
            yield


def seen_of(record: Mapping[str, Any], text: str, finish: str, left: Sequence[tuple[int, int]] = ()) -> Seen:
    """What an audit record of an answer says, and what the client got."""
    checks = [(each["depth"], each.get("error")) for each in record["checks"]]
    windows = [(each["start"], each["stop"], each["checked_at"], each["state"]) for each in record["windows"]]
    scores = {each["depth"]: each["score"] for each in record["checks"] if "error" not in each}
    verdict = record["verdict"] or {}
    return Seen(
        text,
        finish,
        checks,
        scores,
        windows,
        record["generated_tokens"],
        record["prefill_tokens"],
        verdict.get("reason"),
        list(left),
    )
