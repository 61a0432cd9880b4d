"""A guard model behind an endpoint of OpenAI's form, in this process: it follows a script."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | bool | tuple[int, Any] | None


@dataclass
class FakeGuard:
    """The endpoint.

    Attributes:
        verdict: What it replies by the text that it was asked about: the content of a chat message, whether a
            moderation is flagged, or a status and a whole body.
        usage: Whether chat replies tell their usage, of 100 and 2 tokens.
        before: Called before each reply.
        requests: Path, key and body of every request.
        url: Where it listens, /v1 included.
    """

    verdict: Callable[[str], Reply] = lambda text: "safe"
    usage: bool = True
    before: Callable[[], object] = lambda: None
    requests: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def held(self) -> tuple[threading.Event, threading.Event]:
        """Wait before each reply from here on: what is set once it was asked, and what lets it reply."""
        asked, replies = threading.Event(), threading.Event()

        def before() -> None:
            asked.set()
            assert replies.wait(30)

        self.before = before
        return asked, replies

    def __post_init__(self) -> None:
        guard = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                guard.requests.append((self.path, self.headers["Authorization"], body))
                guard.before()
                status, content = guard.reply(self.path, body)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and body of the reply."""
        moderates = path == "/v1/moderations"
        told = self.verdict(body["input"] if moderates else body["messages"][-1]["content"])
        if isinstance(told, tuple):
            return told
        if moderates:
            result = {
                "flagged": told,
                "categories": {"violence/graphic": told, "hate": False},
                "category_scores": {"violence/graphic": 0.5, "hate": 0.0},
            }
            return 200, {"id": "a", "model": body["model"], "results": [result]}
        choice = {"index": 0, "message": {"role": "assistant", "content": told}, "finish_reason": "stop"}
        found = {"id": "a", "object": "chat.completion", "created": 1, "model": "g", "choices": [choice]}
        usage = {"usage": {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}} if self.usage else {}
        return 200, found | usage

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The bodies of the requests after the trial's."""
        return [body for _, _, body in self.requests if "capital of France" not in json.dumps(body)]

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()
