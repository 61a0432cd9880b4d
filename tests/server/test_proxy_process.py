"""`anydepth proxy` as a process of its own, and what it says on a terminal."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.server.process import ROOT, ServerProcess
from tests.unit.apis.fake_api import ANSWER, FakeApi, Script

KEY = "the-key-of-the-upstream"
QUESTION = [{"role": "user", "content": "Count to eight."}]


@pytest.fixture(scope="module")
def api() -> Iterator[FakeApi]:
    upstream = FakeApi(Script())
    yield upstream
    upstream.close()


def command(api: FakeApi) -> list[str]:
    given = ["--upstream", f"{api.url}/v1", "--model", "m", "--name", "guarded", "--port", "0", "--key-env", "UPSTREAM"]
    return ["-m", "anydepth", "proxy", *given]


def test_a_proxy_answers_until_it_is_told_to_stop(api: FakeApi) -> None:
    with ServerProcess(command(api), {"UPSTREAM": KEY}, wait=300) as proxy:
        client = proxy.client()
        assert [model.id for model in client.models.list()] == ["guarded"]
        reply = client.chat.completions.create(model="guarded", messages=QUESTION)
        assert reply.choices[0].message.content == "".join(ANSWER)
        assert client.chat.completions.create(model="guarded", messages=QUESTION).usage.completion_tokens == 9
        assert proxy.stop() == 0
    assert KEY not in "".join(proxy.raw) and "Count to eight" not in "".join(proxy.raw)
    proxy.until(lambda: any(record["message"] == "what the upstream was asked" for record in proxy.log))
    told = next(record for record in proxy.log if record["message"] == "what the upstream was asked")
    assert told["answers"]["requests"] == 2 and told["capability"] == "closes"


def test_on_a_terminal_it_says_where_to_go(api: FakeApi) -> None:
    mine, its = pty.openpty()
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "UPSTREAM": KEY, "TERM": "dumb"}
    process = subprocess.Popen([sys.executable, *command(api)], stderr=its, stdout=subprocess.DEVNULL, env=env)
    os.close(its)
    try:
        said = ""
        while "API" not in said or not said.endswith("\n"):
            said += os.read(mine, 4096).decode()
    finally:
        process.terminate()
        assert process.wait(30) == 0
        os.close(mine)
    found = re.search(
        r"Console  http://127\.0\.0\.1:(\d+)/\r\nAPI      http://127\.0\.0\.1:(\d+)/v1 \(model guarded\)", said
    )
    assert found and found[1] == found[2], said
    assert '{"' not in said, "no JSON for people"
