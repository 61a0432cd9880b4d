"""The three servers in this process, asked by OpenAI's client, with answers that end as a test wants them."""

from typing import Any

import openai
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from anydepth.audit import open_audit
from anydepth.server.engine.open_upstream import open_client, open_engine
from anydepth.server.http.app import build_app
from anydepth.server.service import Service
from anydepth.settings import parse_settings
from tests.server.scripted_server import engine_of
from tests.unit.apis.fake_api import NO, YES, FakeApi, Script
from tests.unit.server.test_vllm_front import CLEAR, HALT, REFUSAL, Vllm

FILTERED = {"anydepth": {"filtered": True, "severity": "high"}}
SAID = {
    "clear": "say: all is well",
    "late": "say: all is well here, and then comes the harm, and more of it than one window has",
    "first": "harm: all is well",
    "failed": "blind: all is well here and goes on",
    "broken": "break: all is well here and goes on",
}
"""What to ask the scripted server, by how its answer ends."""
TOLD = {
    "clear": [("all is well", CLEAR, {})],
    "late": [("all is well", HALT, {})],
    "first": [("", HALT | {"depth": 0, "released_tokens": 0, "leak_tokens": 0}, {})],
    "failed": [("all is well", HALT | {"reason": "error", "failed_checks": 1}, {})],
    "broken": [],
}
"""What vLLM answers."""


def refuses_harm(partial: str) -> str:
    return NO if "harm" in partial else YES


def proxied(ends: str, **more: Any) -> dict[str, Any]:
    """What a proxy's upstream does: the fields of its `Script` that are not the same for all."""
    words = SAID[ends].partition(": ")[2].split(" ")
    plain = {"look_ahead": refuses_harm, "check_finish": "", "break_after": None}
    return plain | {"answer": [f"{word} " for word in words[:-1]] + words[-1:]} | more


PROXIED: dict[str, dict[str, Any]] = {
    "clear": proxied("clear"),
    "late": proxied("late"),
    "first": proxied("first", look_ahead=lambda partial: NO),
    # the tokens of a check are spent on thoughts: a request that fails is told as the upstream's failure
    "failed": proxied("failed", look_ahead=lambda partial: YES if len(partial) < 12 else "", check_finish="length"),
    "broken": proxied("broken", break_after=3),
}
"""What the upstream of a proxy does."""


class Host:
    """A server in this process.

    Attributes:
        requests: How many it got.
    """

    def __init__(self, engine: str, **tables: Any) -> None:
        self.engine, self.requests = engine, 0
        tables = {"guard": {"refusal": REFUSAL}, **tables}
        if engine == "vllm":
            self.vllm = Vllm(**tables)
            self.vllm.left_out = True
            http = self.vllm.client
        elif engine == "proxy":
            self.script = Script()
            self.api = FakeApi(self.script)
            upstream = {"url": f"{self.api.url}/v1", "api": "openai", "model": "m", "retries": 0}
            settings = parse_settings({"upstream": upstream, **tables})
            proxied = open_engine(settings, open_client(settings.upstream))
            http = TestClient(build_app(Service(proxied, settings, open_audit(settings.audit)), []))
            http.__enter__()
        else:
            settings = parse_settings(tables)
            http = TestClient(build_app(Service(engine_of(settings), settings, open_audit(settings.audit)), []))
            http.__enter__()
        http.event_hooks = {"request": [self._count]}
        self.http = http
        self.client = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=2)

    def stop(self) -> None:
        if self.engine != "vllm":
            self.http.__exit__(None, None, None)
        if self.engine == "proxy":
            self.api.close()

    def _count(self, _: Any) -> None:
        self.requests += 1

    def ask(self, ends: str, **options: Any) -> dict[str, Any]:
        """The fields of a request whose answer ends so."""
        if self.engine == "vllm":
            self.vllm.answers = TOLD[ends]
            self.vllm.respond = (lambda _: JSONResponse({"error": {"message": "x"}}, 500)) if ends == "broken" else None
        if self.engine == "proxy":
            for name, value in PROXIED[ends].items():
                setattr(self.script, name, value)
        model = "scripted" if self.engine == "transformers" else "m"
        return {"model": model, "messages": [{"role": "user", "content": SAID[ends]}], **options}

    def whole(self, ends: str, **options: Any) -> Any:
        return self.client.chat.completions.create(**self.ask(ends, **options)).choices[0]

    def stream(self, ends: str, **options: Any) -> list[Any]:
        return list(self.client.chat.completions.create(**self.ask(ends, **options), stream=True))


def text_of(chunks: list[Any]) -> str:
    """The text of a stream."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
