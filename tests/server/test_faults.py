"""What happens when something breaks: in no case does anything leave unchecked."""

import contextlib
import json
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from anydepth.audit.reading import read_records
from anydepth.audit.verify import verify_audit
from tests.server.process import ServerProcess
from tests.server.test_chat import HARM, REFUSAL, ask, stream, text_of
from tests.server.test_concurrency import LONG

SECRET = "the words of the prompt"


def verified(path: Path) -> None:
    report = verify_audit(path)
    assert report.ok, report.violations


def test_a_detector_that_raises_halts_the_answer(server, client, audit_path):
    text = "12345678 this is never seen " + SECRET
    choice = ask(client, f"blind: {text}").choices[0]
    assert choice.finish_reason == "content_filter" and choice.anydepth["reason"] == "error"
    assert choice.message.content == "1234\n\n" + REFUSAL  # 4 tokens were checked before it broke
    chunks = stream(client, f"blind: {text}")
    assert text_of(chunks) == "1234\n\n" + REFUSAL and chunks[-1].choices[0].finish_reason == "content_filter"
    verified(audit_path)


def test_a_model_that_raises_ends_the_answer(server, client, audit_path):
    text = "12345678 this is never seen " + SECRET
    recorded = verify_audit(audit_path).answers["error"]
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, f"break: {text}")
    assert caught.value.code == "engine_error" and SECRET not in str(caught.value)
    seen: list = []
    with pytest.raises(openai.APIError, match="the engine failed"):
        seen.extend(ask(client, f"break: {text}", stream=True))
    assert text_of(seen) == "12345678"
    assert ask(client, "say: and on it goes").choices[0].message.content == "and on it goes"
    # a thread of its own writes the records, while the client has its error already
    server.until(lambda: verify_audit(audit_path).answers["error"] >= recorded + 2)
    verified(audit_path)


def test_the_log_has_no_text(server):
    assert any(record.get("message") == "the engine failed" for record in server.log)
    assert SECRET not in "".join(server.raw) and "never seen" not in "".join(server.raw)
    failed = next(record for record in server.log if record.get("message") == "the engine failed")
    assert "scripted_server.py" in failed["exc_info"]


def test_the_log_has_text_where_the_operator_asks_for_it():
    with ServerProcess.scripted({"logging": {"log_text": True}}) as talkative:
        ask(talkative.client(), f"blind: 12345678 {SECRET}")
        talkative.until(lambda: SECRET[:5] in "".join(talkative.raw) or "the detector broke" in "".join(talkative.raw))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB; where none can be mounted, a limit on the size of files (EFBIG instead of ENOSPC)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        yield folder, 524_288
    else:
        yield folder, None
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_stops_the_answers(small_disk):
    folder, limit = small_disk
    path = folder / "audit"
    settings = {"audit": {"kind": "jsonl", "path": str(path), "max_bytes": 10_000_000}}
    with ServerProcess.scripted(settings) as server:
        if limit:
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        client = server.client()
        endings = []
        for _ in range(100):
            choice = ask(client, "say: " + "a calm long story " * 20).choices[0]
            endings.append(choice.finish_reason)
            if choice.finish_reason == "content_filter":
                break
        assert endings[-1] == "content_filter" and endings[0] == "stop"
        assert choice.anydepth["reason"] == "error" and choice.message.content.endswith(REFUSAL)
        assert server.get("/readyz").status_code == 503 and server.get("/healthz").status_code == 200
        chunks = stream(client, "say: nothing of this may leave, " * 5)
        assert text_of(chunks).endswith(REFUSAL) and chunks[-1].choices[0].finish_reason == "content_filter"
        assert server.metric("anydepth_audit_failures_total") >= 2
        if limit:
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        else:
            subprocess.run(["mount", "-o", "remount,size=10m", folder], check=True)
        assert server.get("/readyz").status_code == 200  # it recovers by itself
        assert ask(client, "say: hello").choices[0].finish_reason == "stop"
    report = verify_audit(path)
    assert report.ok, report.violations


def test_a_full_disk_may_be_ignored(small_disk):
    folder, limit = small_disk
    path = folder / "audit"
    settings = {"audit": {"kind": "jsonl", "path": str(path), "on_error": "open"}}
    with ServerProcess.scripted(settings) as server:
        if limit:
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        client = server.client()
        endings = {ask(client, "say: " + "a calm long story " * 20).choices[0].finish_reason for _ in range(100)}
        assert endings == {"stop"}
        assert server.metric("anydepth_audit_failures_total") > 0
        assert ask(client, HARM).choices[0].finish_reason == "content_filter"


@pytest.mark.parametrize("grace", [10, 0.3])
def test_sigterm_under_load(tmp_path, grace):
    path = tmp_path / "audit.jsonl"
    settings = {"audit": {"kind": "jsonl", "path": str(path)}, "limits": {"grace_seconds": grace, "live": 3}}
    results: list[str] = []
    with ServerProcess.scripted(settings) as server:

        def go() -> None:
            body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": LONG}]}
            with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as response:
                results.append([line for line in response.iter_lines() if line][-1])

        clients = [threading.Thread(target=go) for _ in range(3)]
        for each in clients:
            each.start()
        server.until(lambda: server.metric("anydepth_live_answers") == 3)
        time.sleep(0.3)
        server.terminate()
        for each in clients:
            each.join(20)
        assert server.process.wait(10) == 0
    assert len(results) == 3
    if grace == 10:
        assert results == ["data: [DONE]"] * 3
    else:
        assert all(json.loads(line.removeprefix("data: "))["error"]["code"] == "shutting_down" for line in results)
    report = verify_audit(path)
    assert report.ok, report.violations
    assert report.answers == ({"finished": 3} if grace == 10 else {"shutdown": 3})
    assert report.unchecked == 0 and report.released > 0


def test_a_killed_server_leaves_an_account_of_what_left(tmp_path):
    path = tmp_path / "audit.jsonl"
    with ServerProcess.scripted({"audit": {"kind": "jsonl", "path": str(path)}}) as server:
        seen = 0
        body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": LONG}]}
        with (
            contextlib.suppress(httpx.RemoteProtocolError),
            httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as response,
        ):
            for line in response.iter_lines():
                if line:
                    seen += len(json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", ""))
                if seen > 60:
                    server.process.kill()
        assert server.process.wait(5) == -signal.SIGKILL
    report = verify_audit(path)
    assert report.ok, report.violations
    assert report.unfinished == 1 and report.released >= seen
    with path.open("ab") as file:
        file.write(b'{"kind": "window", "id": "half of i')
    with ServerProcess.scripted({"audit": {"kind": "jsonl", "path": str(path)}}) as again:
        ask(again.client(), "say: hello")
        assert any("half a record" in record.get("message", "") for record in again.log)
    report = verify_audit(path)
    assert report.ok, report.violations
    assert report.unfinished == report.torn == report.answers["finished"] == 1


def test_a_second_server_on_the_same_trail_is_refused(tmp_path):
    path = tmp_path / "audit.jsonl"
    settings = {"audit": {"kind": "jsonl", "path": str(path)}}
    with ServerProcess.scripted(settings) as first:
        with pytest.raises(RuntimeError, match=r"audit\.jsonl: another server writes it; give each server a path"):
            ServerProcess.scripted(settings)
        for _ in range(3):
            assert ask(first.client(), "say: hello").choices[0].finish_reason == "stop"
    with ServerProcess.scripted(settings) as second:
        ask(second.client(), "say: hello")
    report = verify_audit(path)
    assert report.ok, report.violations
    assert report.answers["finished"] == 4


def test_logrotate_moves_the_file_while_the_server_runs(tmp_path):
    path = tmp_path / "audit.jsonl"
    with ServerProcess.scripted({"audit": {"kind": "jsonl", "path": str(path)}}) as server:
        client = server.client()
        for number in range(4):
            assert ask(client, "say: hello").choices[0].finish_reason == "stop"
            path.rename(tmp_path / f"audit.jsonl.{4 - number}")
        assert ask(client, "say: hello").choices[0].finish_reason == "stop"
        assert sum("moved or deleted" in record.get("message", "") for record in server.log) == 4
        assert server.get("/readyz").status_code == 200
    report = verify_audit(path)
    assert report.ok, report.violations
    assert report.answers["finished"] == 5 and report.begins == 1


def test_the_trail_is_private(audit_path, server, client):
    ask(client, "say: hello")
    assert audit_path.stat().st_mode & 0o077 == 0
    assert SECRET not in audit_path.read_text()


def test_the_trail_has_text_where_the_operator_asks_for_it(tmp_path):
    path = tmp_path / "audit.jsonl"
    with ServerProcess.scripted({"audit": {"kind": "jsonl", "path": str(path), "text": True}}) as server:
        ask(server.client(), "say: hello there")
    (answer,) = (record for record in read_records(path) if record["kind"] == "answer")
    assert answer["messages"] == [{"role": "user", "content": "say: hello there"}]
    assert answer["text"] == "hello there"
