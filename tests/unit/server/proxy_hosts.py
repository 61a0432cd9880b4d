"""A proxy in this process, asked by OpenAI's client over HTTP, before an API that follows a script."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import uvicorn

from anydepth.audit import open_audit
from anydepth.server.engine.open_upstream import open_client, open_engine
from anydepth.server.http.app import build_app
from anydepth.server.resources import listening
from anydepth.server.service import Service
from anydepth.settings import parse_settings
from tests.unit.apis.fake_api import FakeApi, Script

REFUSAL = "No, thanks."
QUESTION = [{"role": "user", "content": "Count to eight."}]
OPEN = {"interval": {"min": 1, "max": 9}, "release": ["eager", "monitor"], "checks": True}


class ProxyHost:
    """A proxy and its upstream.

    Attributes:
        script: What the upstream does; see `follow`.
        client: OpenAI's client of the proxy.
        url: Where the proxy is.
    """

    def __init__(self, api: str = "openai", **tables: Any) -> None:
        self.script = Script(trailing="closes" if api == "openai" else "rejects")
        self._trailing = self.script.trailing
        self._api = FakeApi(self.script)
        url = self._api.url if api == "anthropic" else f"{self._api.url}/v1"
        upstream = {"url": url, "api": api, "model": "m", "retries": 0, **tables.pop("upstream", {})}
        guard = {"interval": 2, "doubling": False, "refusal": REFUSAL, **tables.pop("guard", {})}
        settings = parse_settings({"upstream": upstream, "guard": guard, "overrides": OPEN, **tables})
        self.engine = open_engine(settings, open_client(settings.upstream))
        service = Service(self.engine, settings, open_audit(settings.audit))
        config = uvicorn.Config(build_app(service, []), log_config=None, lifespan="on", timeout_graceful_shutdown=5)
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
        sockets = listening("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve(sockets)), daemon=True)
        self._thread.start()
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=2, timeout=30)

    def follow(self, **fields: Any) -> Script:
        """Let the upstream follow another script, from its next request on."""
        fresh = Script(**{"trailing": self._trailing, **fields})
        for name in Script.__dataclass_fields__:
            setattr(self.script, name, getattr(fresh, name))
        return self.script

    def ask(self, **options: Any) -> Any:
        """A whole reply."""
        return self.client.chat.completions.create(**{"model": "m", "messages": QUESTION, **options})

    def stream(self, **options: Any) -> list[Any]:
        """The chunks of a stream."""
        return list(self.ask(stream=True, **options))

    def metrics(self) -> dict[str, float]:
        """The samples of all metrics, by name and labels as Prometheus writes them."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._api.close()


def until(holds: Callable[[], bool]) -> None:
    """Wait until `holds()`."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.01)


def text_of(chunks: list[Any]) -> str:
    """The text of a stream."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
