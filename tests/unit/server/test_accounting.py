"""Each answer leaves one record, however it ends and whatever the disk does meanwhile."""

import asyncio
import errno
import threading
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from anydepth.audit.file import JsonlFile
from anydepth.audit.reading import read_records
from anydepth.audit.trail import Audit
from anydepth.audit.verify import verify_audit
from anydepth.server.engine.engine import EngineError
from anydepth.server.http.app import build_app
from anydepth.server.http.chat import _ask
from anydepth.server.http.requests import ChatRequest
from anydepth.server.service import Service
from anydepth.settings import parse_settings
from tests.server.scripted_server import engine_of

HARM = "say: this begins well and then there is harm in it, and more of it"
REFUSAL = "I can't help with that."


class Disk(JsonlFile):
    """A real file, whose records fail by their number, or wait."""

    def __init__(self, path: Path) -> None:
        self.bad: set[int] = set()
        self.count = 0
        self.goes, self.entered = threading.Event(), threading.Event()
        self.goes.set()
        super().__init__(path, 10**9, 3)

    def write(self, record: Any) -> None:
        self.entered.set()
        assert self.goes.wait(60)
        self.count += 1
        if self.count in self.bad:
            raise OSError(errno.EIO, "Input/output error")
        super().write(record)

    def probe(self) -> None:
        if self.count + 1 in self.bad:
            raise OSError(errno.EIO, "Input/output error")
        super().probe()


class House:
    """A server in this process."""

    def __init__(self, service: Service, disk: Disk, path: Path, client: httpx.AsyncClient) -> None:
        self.service, self.disk, self.path, self.client = service, disk, path, client

    async def chat(self, text: str, **options: Any) -> httpx.Response:
        body = {"model": "scripted", "messages": [{"role": "user", "content": text}], **options}
        return await self.client.post("/v1/chat/completions", json=body)

    @property
    def answers(self) -> list[dict[str, Any]]:
        return [record for record in read_records(self.path) if record["kind"] == "answer"]

    def verified(self) -> Counter[str]:
        """Outcomes, after it was made sure that each answer has one record and all is in order."""
        report = verify_audit(self.path)
        assert report.ok, report.violations
        keys = Counter((record["id"], record["choice"]) for record in self.answers)
        assert set(keys.values()) <= {1}, keys
        return report.answers


@asynccontextmanager
async def house(tmp_path: Path, *, patience: float = 30, on_error: Any = "closed", **tables: Any):
    settings = parse_settings({"audit": {"kind": "jsonl"}, **tables})
    path = tmp_path / "audit.jsonl"
    disk = Disk(path)
    service = Service(engine_of(settings), settings, Audit(disk, on_error, patience))
    async with AsyncExitStack() as stack:
        await service.engine.start()
        stack.push_async_callback(asyncio.to_thread, service.audit.close)
        stack.push_async_callback(service.engine.stop)
        stack.callback(disk.goes.set)
        transport = httpx.ASGITransport(build_app(service, []))
        client = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)
        yield House(service, disk, path, await stack.enter_async_context(client))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("say: hello there", "finished"),
        (HARM, "finished"),
        ("harm: blocked before the first token", "finished"),
        ("blind: 12345678 the detector raises", "finished"),
        ("break: 12345678 the engine raises", "error"),
    ],
)
async def test_each_ending_leaves_one_record(tmp_path, text, outcome, streamed):
    async with house(tmp_path, limits={"choices": 3}) as server:
        await server.chat(text, stream=streamed)
        await server.chat(text, stream=streamed)
    assert server.verified() == {outcome: 2}


async def test_blocked_before_the_first_token(tmp_path):
    async with house(tmp_path) as server:
        reply = (await server.chat("harm: nothing of this leaves")).json()["choices"][0]
    assert reply["finish_reason"] == "content_filter" and reply["message"]["content"] == REFUSAL
    (record,) = server.answers
    assert record["finish_reason"] == "content_filter" and record["verdict"]["depth"] == 0
    assert {window["state"] for window in record["windows"]} <= {"withheld"}
    server.verified()


async def test_a_timeout(tmp_path):
    async with house(tmp_path, limits={"timeout_seconds": 0.3, "live": 1}) as server:
        replies = await asyncio.gather(*(server.chat("slow: " + "a long story " * 60) for _ in range(3)))
        assert [reply.status_code for reply in replies] == [504] * 3
    assert server.verified() == {"timeout": 3}  # those that waited their time out as well


async def test_a_shutdown(tmp_path):
    async with house(tmp_path, limits={"live": 1}) as server:
        asked = [asyncio.create_task(server.chat("slow: " + "a long story " * 60)) for _ in range(2)]
        while (stats := server.service.engine.stats).live + stats.waiting < 2:
            await asyncio.sleep(0.001)
        server.service.engine.abort()
        assert [(await each).status_code for each in asked] == [503] * 2
    assert server.verified() == {"shutdown": 2}


async def test_what_never_became_an_answer_leaves_none(tmp_path):
    async with house(tmp_path, limits={"live": 1, "queue": 0}) as server:
        first = asyncio.create_task(server.chat("slow: " + "a long story " * 10))
        while server.service.engine.stats.live == 0:
            await asyncio.sleep(0.001)
        assert (await server.chat("say: hello")).status_code == 429
        await first
        assert (await server.chat("say: hello", max_tokens=10**6)).status_code == 400
        assert (await server.client.post("/v1/completions", json={"prompt": " "})).status_code == 400
    assert server.verified() == {"finished": 1}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("after", [0, 1, 5])
async def test_a_client_that_goes(tmp_path, n, after):
    """Cancelled, or closed, after some pieces: as many records as answers that had begun."""
    async with house(tmp_path, limits={"choices": 3}) as server:
        for closes in (True, False):
            await leave(server, n, after, closes=closes)
            while server.service.engine.stats.live:
                await asyncio.sleep(0.001)
    outcomes = server.verified()
    assert set(outcomes) <= {"cancelled"} and sum(outcomes.values()) <= 2 * n
    assert verify_audit(server.path).unfinished == 0
    if after:
        assert sum(outcomes.values()) >= 2


async def leave(server: House, n: int, after: int, *, closes: bool) -> None:
    """Ask, take `after` pieces, and go."""
    body = ChatRequest.model_validate(
        {"model": "scripted", "n": n, "messages": [{"role": "user", "content": "slow: " + "a long story " * 60}]}
    )
    pieces = server.service.run(_ask(body, server.service, {}))

    async def read() -> None:
        count = 0
        async for _ in pieces:
            count += 1
            if closes and count > after:
                break
            if count == after:
                reached.set()

    reached = asyncio.Event()
    if not after:
        reached.set()
    task = asyncio.create_task(read())
    if closes:
        await task
        await pieces.aclose()
    else:
        await reached.wait()
        await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await pieces.aclose()


@pytest.mark.parametrize("on_error", ["closed", "open"])
async def test_a_disk_that_is_full_for_a_while_costs_no_record(tmp_path, on_error):
    """Answers that were stopped have theirs once there is room; answers that went on without have all of theirs."""
    async with house(tmp_path, on_error=on_error) as server:
        await server.chat("say: hello there")
        server.disk.bad = set(range(server.disk.count + 3, 1000))  # in the middle of the next answer
        endings = [(await server.chat("say: hello there")).json()["choices"][0]["finish_reason"] for _ in range(5)]
        assert set(endings) == {"content_filter" if on_error == "closed" else "stop"}
        assert (await server.client.get("/readyz")).status_code == 503
        server.disk.bad = set()
        assert (await server.client.get("/readyz")).status_code == 200
        assert server.verified() == ({"finished": 1, "audit": 5} if on_error == "closed" else {"finished": 6})
        assert verify_audit(server.path).unfinished == verify_audit(server.path).lost == 0


@pytest.mark.parametrize("text", ["say: hello there, this is a calm answer", HARM, "harm: at once"])
@pytest.mark.parametrize("bad", range(1, 9))
async def test_a_record_that_fails_once(tmp_path, text, bad):
    """Whichever record it is: nothing unrecorded leaves, the answer ends with one refusal, and has its record."""
    async with house(tmp_path) as server:
        server.disk.bad = {server.disk.count + bad}
        body = (await server.chat(text)).json()
        (choice,) = body["choices"]
        failed = server.service.audit.failures
    assert choice["message"]["content"].count(REFUSAL) == (choice["finish_reason"] == "content_filter")
    outcomes = server.verified()
    (record,) = server.answers
    if failed:
        assert choice["finish_reason"] == "content_filter" and choice["anydepth"]["reason"] == "error"
        assert outcomes == {"audit": 1}
    left = sum(w["stop"] - w["start"] for w in record["windows"] if w["state"] == "released")
    report = choice["anydepth"]
    assert report["released_tokens"] == left
    assert report["released_tokens"] + report["withheld_tokens"] == body["usage"]["completion_tokens"]
    assert report["failed_checks"] == failed


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
async def test_calls_after_a_failed_check_do_not_leave_and_the_record_says_so(tmp_path, called, streamed):
    """The guard fails open, so that the text goes on after the check that failed."""
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>' if called else "this is a calm answer"
    tables = {"guard": {"on_error": "open"}, "tools": {"format": "hermes"}}
    async with house(tmp_path, **tables) as server:
        tools = [{"type": "function", "function": {"name": "f"}}]
        reply = await server.chat(f"blind: {text}", tools=tools, stream=streamed)
    assert ("content_filter" in reply.text) is called and ("tool_calls" not in reply.text)
    (record,) = server.answers
    assert record["outcome"] == "finished" and any("error" in check for check in record["checks"])
    assert record["finish_reason"] == ("content_filter" if called else "stop")
    assert record["verdict"]["reason"] == ("error" if called else "clear")
    server.verified()


async def test_the_disk_hangs_and_the_server_does_not(tmp_path):
    async with house(tmp_path, patience=0.5) as server:
        server.disk.entered.clear()
        server.disk.goes.clear()
        asked = asyncio.create_task(server.chat("say: hello there"))
        assert await asyncio.to_thread(server.disk.entered.wait, 30)
        for path in ("/healthz", "/metrics", "/v1/models"):
            assert (await asyncio.wait_for(server.client.get(path), 30)).status_code == 200
        choice = (await asyncio.wait_for(asked, 30)).json()["choices"][0]
        assert choice["finish_reason"] == "content_filter" and choice["message"]["content"] == REFUSAL
        assert not server.disk.goes.is_set()  # all of it while the disk hung
        assert (await server.client.get("/readyz")).status_code == 503
        choice = (await server.chat("say: hello there")).json()["choices"][0]
        assert choice["finish_reason"] == "content_filter"
        assert (await server.client.get("/healthz")).status_code == 200
        server.disk.goes.set()
        while (await server.client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0)
        assert (await server.chat("say: hello")).json()["choices"][0]["finish_reason"] == "stop"
    assert server.verified() == {"audit": 2, "finished": 1}


async def test_a_client_that_goes_while_the_disk_hangs(tmp_path):
    async with house(tmp_path) as server:
        server.disk.entered.clear()
        server.disk.goes.clear()
        asked = asyncio.create_task(server.chat("say: hello there"))
        assert await asyncio.to_thread(server.disk.entered.wait, 30)
        asked.cancel()
        await asyncio.sleep(0)
        server.disk.goes.set()
        with suppress(asyncio.CancelledError):
            await asked
    assert server.verified() == {"cancelled": 1}


async def test_a_file_that_is_moved_while_the_server_runs(tmp_path):
    async with house(tmp_path) as server:
        await server.chat("say: hello")
        server.path.rename(tmp_path / "audit.jsonl.1")
        await server.chat("say: hello")
        server.path.unlink()
        await server.chat("say: hello")
        assert [record["outcome"] for record in server.answers] == ["finished", "finished"]
        assert (await server.client.get("/readyz")).status_code == 200
        server.path.unlink()
        server.path.mkdir()  # it cannot be begun again
        choice = (await server.chat("say: hello")).json()["choices"][0]
        assert choice["finish_reason"] == "content_filter" and choice["message"]["content"] == REFUSAL
        assert (await server.client.get("/readyz")).status_code == 503
        server.path.rmdir()
        assert (await server.client.get("/readyz")).status_code == 200


@pytest.mark.parametrize("text", [False, True])
async def test_scans_have_records(tmp_path, text):
    async with house(tmp_path, audit={"kind": "jsonl", "text": text}) as server:
        reply = (await server.client.post("/v1/moderations", json={"input": ["a question", "harm"]})).json()
        talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a fine answer with harm in it"}]
        await server.client.post("/v1/moderations", json={"input": talk})
    server.verified()
    assert verify_audit(server.path).scans == 3
    scans = [record for record in read_records(server.path) if record["kind"] == "scan"]
    assert [record["id"] for record in scans[:2]] == [reply["id"]] * 2
    assert [record["choice"] for record in scans] == [0, 1, 0]
    assert [record["verdict"]["halt"] for record in scans] == [False, True, True]
    assert [record.get("messages") for record in scans] == (["a question", "harm", talk] if text else [None] * 3)
    assert ("fine answer" in server.path.read_text()) is text


async def test_a_scan_is_recorded_and_counted_though_one_behind_it_fails(tmp_path, monkeypatch):
    async with house(tmp_path) as server:
        scan = server.service.engine.scan

        async def failing(prompt: Any, guard: Any) -> Any:
            found = await scan(prompt, guard)
            if found.verdict.halt:
                raise EngineError("it failed over the second")
            return found

        monkeypatch.setattr(server.service.engine, "scan", failing)
        reply = await server.client.post("/v1/moderations", json={"input": ["a question", "harm"]})
        assert reply.status_code == 500
        metrics = (await server.client.get("/metrics")).text
    assert verify_audit(server.path).scans == 1
    assert 'anydepth_scans_total{flagged="false"} 1.0' in metrics


async def test_a_scan_without_its_record_is_not_answered(tmp_path):
    async with house(tmp_path) as server:
        server.disk.bad = {1}
        server.disk.count = 0
        reply = await server.client.post("/v1/moderations", json={"input": "a question"})
        assert reply.status_code == 503 and reply.json()["error"]["code"] == "audit_failed"
        assert (await server.client.post("/v1/moderations", json={"input": "a question"})).status_code == 200
    assert verify_audit(server.path).scans == 1


async def test_failures_are_counted_once(tmp_path):
    async with house(tmp_path, on_error="open") as server:
        server.disk.count, server.disk.bad = 0, set(range(1, 9))
        await asyncio.gather(*(server.chat("say: " + "hello " * 20) for _ in range(4)))
        text = (await server.client.get("/metrics")).text
    assert f"anydepth_audit_failures_total {float(server.service.audit.failures)}" in text
    assert server.service.audit.failures >= 8
