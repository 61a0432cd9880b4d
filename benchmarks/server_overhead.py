"""What the server costs over the library's own guarded generation, and whether four clients get as much as one.

    python benchmarks/server_overhead.py MODEL [--probe P] [--tokens 256] [--rounds 7] [--out FILE]

All in one process and on one loaded model: the server is a real one (uvicorn, HTTP, JSON, audit trail, metrics) in a
thread, the clients are threads with httpx. Library and server answer the same prompt greedily, in turn, so that what
else the machine does falls on both; each figure is a median of rounds. Leave the machine alone meanwhile.

The exit code is 1 if the overhead at one client is above 5 % or four clients get less than one does.
"""

import argparse
import json
import platform
import socket
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import uvicorn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from anydepth import Every, Finished, Guard, Released, Threshold  # noqa: E402
from anydepth.audit import open_audit  # noqa: E402
from anydepth.bench.benchmark import _blank_probe  # noqa: E402
from anydepth.detectors import LinearProbe, find_shipped  # noqa: E402
from anydepth.server import Service, TransformersEngine, build_app  # noqa: E402
from anydepth.settings import parse_settings  # noqa: E402

PROMPT = "Describe, in order and in plain words, how bread is baked at home."
MOST_OVERHEAD, LEAST_SHARE = 0.05, 1.0


class LocalServer:
    """A server in a thread of this process."""

    def __init__(self, guard: Guard, folder: Path) -> None:
        settings = parse_settings({"audit": {"kind": "jsonl", "path": str(folder / "audit.jsonl")}})
        engine = TransformersEngine(guard, model="bench", live=4)
        app = build_app(Service(engine, settings, open_audit(settings.audit)), [])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = uvicorn.Config(app, port=self.port, log_level="error", access_log=False, lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{self.port}/v1/chat/completions"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)


def by_library(guard: Guard, tokens: int) -> tuple[float, int]:
    """Seconds and tokens of one guarded answer of the library, read as a stream."""
    begun = time.perf_counter()
    count = 0
    for event in guard.stream(PROMPT, max_new_tokens=tokens, do_sample=False, eos_token_id=None):
        if isinstance(event, Released):
            count += len(event.token_ids)
        assert not isinstance(event, Finished) or not event.answer.halted
    return time.perf_counter() - begun, count


def by_server(url: str, http: httpx.Client, tokens: int) -> tuple[float, int]:
    """Seconds and tokens of one guarded answer of the server, read as a stream."""
    body: dict[str, Any] = {
        "model": "bench", "stream": True, "stream_options": {"include_usage": True}, "temperature": 0,
        "max_tokens": tokens, "messages": [{"role": "user", "content": PROMPT}],
    }  # fmt: skip
    begun, usage = time.perf_counter(), {}
    with http.stream("POST", url, json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if '"usage": {' in line:
                usage = json.loads(line.removeprefix("data: "))["usage"]
    return time.perf_counter() - begun, usage["completion_tokens"]


def throughput(url: str, clients: int, tokens: int) -> float:
    """Tokens a second of so many clients together."""
    with ThreadPoolExecutor(clients) as pool, httpx.Client(timeout=600) as http:
        begun = time.perf_counter()
        counts = list(pool.map(lambda _: by_server(url, http, tokens)[1], range(clients)))
        return sum(counts) / (time.perf_counter() - begun)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    from anydepth.backends.transformers import load

    backend = load(arguments.model, dtype="float32")
    backend.model.generation_config.eos_token_id = None  # every answer is of the same length
    probe = LinearProbe.load(arguments.probe) if arguments.probe else find_shipped(backend) or _blank_probe(backend)
    guard = Guard.from_backend(backend, probe, policy=Threshold(1.0), schedule=Every(arguments.interval))
    tokens, library, server, ones, fours = arguments.tokens, [], [], [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalServer(guard, Path(folder)) as url,
        httpx.Client(timeout=600) as http,
    ):
        by_library(guard, tokens)  # warm up
        by_server(url, http, tokens)
        for number in range(arguments.rounds):
            pair = [
                lambda: library.append(by_library(guard, tokens)),
                lambda: server.append(by_server(url, http, tokens)),
            ]
            for measured in pair if number % 2 else reversed(pair):
                measured()
            loads = [lambda: ones.append(throughput(url, 1, tokens)), lambda: fours.append(throughput(url, 4, tokens))]
            for measured in loads if number % 2 else reversed(loads):
                measured()
    assert {count for _, count in [*library, *server]} == {tokens}, "the answers are not of one length"
    overheads = [ours[0] / theirs[0] - 1 for ours, theirs in zip(server, library, strict=True)]
    shares = [four / one for four, one in zip(fours, ones, strict=True)]
    return {
        "overhead_at_one_client": statistics.median(overheads),
        "four_clients_over_one": statistics.median(shares),
        "library_tokens_per_second": statistics.median(count / seconds for seconds, count in library),
        "server_tokens_per_second": statistics.median(count / seconds for seconds, count in server),
        "overheads": overheads,
        "shares": shares,
        "tokens": tokens,
        "interval": arguments.interval,
        "model": Path(backend.identity.name).name,
        "machine": {"platform": platform.platform(), "python": platform.python_version()},
    }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--probe")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--interval", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    figures = measure(arguments)
    good = figures["overhead_at_one_client"] <= MOST_OVERHEAD and figures["four_clients_over_one"] >= LEAST_SHARE
    text = json.dumps({"met": good, **figures}, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
