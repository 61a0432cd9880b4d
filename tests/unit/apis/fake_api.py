"""Servers of OpenAI's and Anthropic's form in this process, which follow a script."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from typing import Any

from anydepth.apis.self_test import COUNTING

ANSWER = ("one ", "two ", "three ", "four ", "five ", "six ", "seven ", "eight")
WEEK = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"
NO = "I'm sorry, but I can't help with that request."
HANGS = "(silence)"
YES = "Sure, here is the answer again."


@dataclass
class Script:
    """What a server does.

    Attributes:
        trailing: What it makes of an assistant message at the end: `closes`, `continues`, `rejects`, `unclear`.
        answer: Pieces of every stream.
        look_ahead: Reply to a check by the answer so far ("" at depth 0).
        trial: Reply to the trial conversation where it is a fresh turn.
        finish: The word that ends streams, as the server's form has it; "" ends them by the form's word for a stop.
        check_finish: The same of whole replies.
        owner: Whom its list of models says that they are owned by; None has no such list.
        usage: Whether usage is told.
        prompt_tokens: The prompt tokens that a whole reply tells, by the body of its request.
        break_after: Pieces after which a stream breaks off; None lets it end.
        clean_break: Whether the connection is then closed as if all was sent.
        failures: Statuses that the next requests get instead of a reply.
        failing: Whether a request fails, by its body: a status, or True for HTTP 500.
        before: Called with the number of each streamed piece before it is sent.
        hangs_at: Number of the streamed piece at which the server falls silent until the client hangs up.
        gone: Set once a client has hung up in the middle of a stream.
        extra_deltas: Further deltas or blocks that each stream has before its text.
        first: Probabilities of the first tokens of a check, a place each, by the answer so far; None tells none.
        requests: Path and body of every request.
    """

    trailing: str = "closes"
    answer: Sequence[str] = ANSWER
    look_ahead: Callable[[str], str | None] = lambda partial: YES
    trial: str = WEEK
    finish: str = ""
    check_finish: str = ""
    owner: str | None = None
    usage: bool = True
    prompt_tokens: Callable[[dict[str, Any]], int] = lambda body: 100
    break_after: int | None = None
    clean_break: bool = True
    failures: list[int] = field(default_factory=list)
    failing: Callable[[dict[str, Any]], int] = lambda body: 0
    before: Callable[[int], None] = lambda number: None
    hangs_at: int | None = None
    gone: threading.Event = field(default_factory=threading.Event)
    extra_deltas: Sequence[dict[str, Any]] = ()
    first: Callable[[str], Sequence[dict[str, float]] | None] = lambda partial: None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body in self.requests]

    @property
    def checks(self) -> list[dict[str, Any]]:
        """Bodies of the checks: whole replies that are not of the trial."""
        return [body for body in self.bodies if not body.get("stream") and not is_trial(body)]

    @property
    def trials(self) -> list[dict[str, Any]]:
        return [body for body in self.bodies if is_trial(body)]

    def reply_to(self, body: dict[str, Any]) -> str | None:
        """The text of a whole reply."""
        last = body["messages"][-1]
        if is_trial(body):
            if last["role"] == "assistant":
                replies = {"closes": self.trial, "continues": "day, Thursday, Friday", "unclear": "Thursday, Friday"}
                return replies[self.trailing]
            return self.trial
        return self.look_ahead(partial_of(body))


def is_trial(body: dict[str, Any]) -> bool:
    """Whether this is the trial conversation."""
    return any("seven days" in each["content"] or each["content"] == COUNTING for each in body.get("messages", ()))


def partial_of(body: dict[str, Any]) -> str:
    """The answer so far that a check is about."""
    said = [message["content"] for message in body["messages"] if message["role"] == "assistant"]
    return said[-1] if said else ""


class FakeApi:
    """An HTTP server over a script; `url` is where it listens."""

    def __init__(self, script: Script) -> None:
        self.script = script
        handler = type("Handler", (_Handler,), {"script": script})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    script: Script

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """The list of models."""
        owner = self.script.owner
        model = {"id": "m", "object": "model", "created": 1, "owned_by": owner}
        self._json(404 if owner is None else 200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        script = self.script
        script.requests.append((self.path, body))
        if script.failures:
            return self._json(script.failures.pop(0), {"error": {"type": "busy", "message": "come back later"}})
        if status := script.failing(body):
            status = 500 if status is True else status
            return self._json(status, {"error": {"type": "broken", "message": "out of order"}})
        last = body["messages"][-1] if "messages" in body else {"role": "user"}
        if script.trailing == "rejects" and last["role"] == "assistant":
            return self._json(400, {"error": {"type": "invalid", "message": "must end with a user message"}})
        form = _Anthropic if self.path == "/v1/messages" else _Completions if "prompt" in body else _Chat
        if body.get("stream"):
            return self._stream(form.events(script, body))
        return self._json(200, form.whole(script, body))

    def _json(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events: Iterator[str | None]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if not self.script.clean_break:
            self.send_header("Content-Length", "1000000")
        self.end_headers()
        for event in events:
            if event is None:
                break
            try:
                if event != HANGS:
                    self.wfile.write(event.encode())
                    continue
                self.connection.recv(1)
            except OSError:  # the client has closed the stream: a halt
                pass
            self.script.gone.set()
            break


class _Chat:
    """OpenAI's chat completions."""

    @staticmethod
    def whole(script: Script, body: dict[str, Any]) -> dict[str, Any]:
        text = script.reply_to(body)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": script.check_finish or "stop"}
        if body.get("logprobs") and (places := script.first("" if is_trial(body) else partial_of(body))) is not None:
            choice["logprobs"] = {"content": [_place(each, body["top_logprobs"]) for each in places], "refusal": None}
        usage = {"usage": _usage(script.prompt_tokens(body), 7)} if script.usage else {}
        return _envelope("chat.completion", [choice], usage)

    @staticmethod
    def delta(content: dict[str, Any]) -> dict[str, Any]:
        return {"index": 0, "delta": content, "finish_reason": None}

    @classmethod
    def events(cls, script: Script, body: dict[str, Any]) -> Iterator[str | None]:
        for extra in script.extra_deltas:
            yield _data(_envelope("chat.completion.chunk", [cls.delta(extra)]))
        for number, piece in enumerate(script.answer):
            if number == script.break_after:
                yield None
            if number == script.hangs_at:
                yield HANGS
            script.before(number)
            yield _data(_envelope("chat.completion.chunk", [cls.delta({"content": piece})]))
        if script.break_after == len(script.answer):
            yield None
        end = {**cls.delta({}), "finish_reason": script.finish or "stop"}
        yield _data(_envelope("chat.completion.chunk", [end]))
        if script.usage and body.get("stream_options"):
            yield _data(_envelope("chat.completion.chunk", [], {"usage": _usage(50, 9)}))
        yield "data: [DONE]\n\n"


class _Completions(_Chat):
    """OpenAI's completions: a check is told from an answer by not being streamed."""

    @staticmethod
    def whole(script: Script, body: dict[str, Any]) -> dict[str, Any]:
        text = script.look_ahead(body["prompt"])
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": script.check_finish or "stop"}
        if body.get("logprobs") and (places := script.first(body["prompt"])) is not None:
            written = [max(each, key=each.__getitem__) for each in places]
            choice["logprobs"] = {
                "tokens": written,
                "token_logprobs": [log(each[token]) for each, token in zip(places, written, strict=True)],
                "top_logprobs": [{token: log(value) for token, value in each.items()} for each in places],
                "text_offset": [0] * len(places),
            }
        return _envelope("text_completion", [choice], {"usage": _usage(100, 7)})

    @staticmethod
    def delta(content: dict[str, Any]) -> dict[str, Any]:
        return {"index": 0, "text": content.get("content", ""), "finish_reason": None}


class _Anthropic:
    """Anthropic's Messages."""

    @staticmethod
    def whole(script: Script, body: dict[str, Any]) -> dict[str, Any]:
        text = script.reply_to(body)
        content = [] if text is None else [{"type": "text", "text": text}]
        usage = {"input_tokens": 90, "cache_read_input_tokens": 10, "output_tokens": 7}
        return _message(content, script.check_finish or "end_turn", usage)

    @staticmethod
    def events(script: Script, body: dict[str, Any]) -> Iterator[str | None]:
        yield _named("message_start", message=_message([], None, {"input_tokens": 50, "output_tokens": 1}))
        for block in script.extra_deltas:
            yield _named("content_block_start", index=0, content_block=block)
        yield _named("content_block_start", index=0, content_block={"type": "text", "text": ""})
        for number, piece in enumerate(script.answer):
            if number == script.break_after:
                yield None
            if number == script.hangs_at:
                yield HANGS
            script.before(number)
            yield _named("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
        if script.break_after == len(script.answer):
            yield None
        yield _named("content_block_stop", index=0)
        delta = {"stop_reason": script.finish or "end_turn", "stop_sequence": None}
        yield _named("message_delta", delta=delta, usage={"output_tokens": 9})
        yield _named("message_stop")


def _place(tokens: dict[str, float], top: int) -> dict[str, Any]:
    """One place of the log-probabilities of a chat: the token that was written, and the most probable ones."""
    ranked = sorted(tokens, key=lambda token: -tokens[token])
    records = [{"token": each, "logprob": log(tokens[each]), "bytes": list(each.encode())} for each in ranked]
    return {**records[0], "top_logprobs": records[:top]}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _envelope(kind: str, choices: list[Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"id": "a", "object": kind, "created": 1, "model": "m", "choices": choices, **(more or {})}


def _message(content: list[Any], stop: str | None, usage: dict[str, int]) -> dict[str, Any]:
    fixed = {"id": "a", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
    return {**fixed, "content": content, "stop_reason": stop, "usage": usage}


def _data(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _named(event: str, **content: Any) -> str:
    return f"event: {event}\ndata: {json.dumps({'type': event, **content})}\n\n"
