"""Run a guarded server under mixed load for a while, and see that nothing leaks and nothing leaves unchecked.

    python benchmarks/soak/soak.py --minutes 15                   tiny random model, made on the spot
    python benchmarks/soak/soak.py --minutes 15 --model FOLDER --threshold 0.99      a real one with its shipped probe
    python benchmarks/soak/soak.py --minutes 15 --proxy           `anydepth proxy` before an API that follows a script

Clients, in turn: plain, streaming, harmful, slow readers, ones that go away, malformed. What must hold is in `verdict`;
the exit code is 1 if something does not. The report is one JSON object, on standard output and in --out.
"""

import argparse
import asyncio
import json
import platform
import random
import statistics
import sys
import tempfile
import time
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from anydepth.audit import verify_audit  # noqa: E402
from tests.server.process import ServerProcess  # noqa: E402
from tests.unit.apis import fake_api  # noqa: E402

KINDS = ("plain", "stream", "harmful", "slow", "gone", "malformed")
GROWTH = 0.05
"""Memory may be this much higher in the last third than in the second, of what the process has."""


@dataclass
class Load:
    """What the clients do and what they saw."""

    url: str
    model: str
    prompts: list[list[dict[str, str]]]
    attacks: list[list[dict[str, str]]]
    until: float
    tokens: int
    done: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)

    async def client(self, number: int) -> None:
        """One client: one kind of request after the other."""
        rng = random.Random(number)
        async with httpx.AsyncClient(base_url=self.url, timeout=400) as http:
            while time.monotonic() < self.until:
                kind = KINDS[(number + self.done.total()) % len(KINDS)] if rng.random() < 0.5 else rng.choice(KINDS)
                try:
                    await getattr(self, kind)(http, rng)
                except httpx.HTTPError as error:
                    self.surprises.append(f"{kind}: {type(error).__name__} {error}")
                self.done[kind] += 1

    def _body(self, rng: random.Random, **options: Any) -> dict[str, Any]:
        tokens = rng.randint(1, self.tokens)
        messages = rng.choice(self.prompts)
        return {
            "model": self.model,
            "messages": messages,
            "max_tokens": tokens,
            "seed": rng.randint(0, 9999),
            **options,
        }

    async def _seen(self, kind: str, response: httpx.Response, allowed: tuple[int, ...]) -> bool:
        self.statuses[str(response.status_code)] += 1
        if response.status_code == 429:
            await asyncio.sleep(min(float(response.headers["retry-after"]), 2))
        elif response.status_code not in allowed:
            await response.aread()
            self.surprises.append(f"{kind}: {response.status_code} {response.text[:200]}")
        return response.status_code == 200

    async def plain(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """A whole answer, or several."""
        body = self._body(rng, n=rng.choice([1, 1, 1, 3]), temperature=rng.choice([0, 0.8]))
        await self._seen("plain", await http.post("/v1/chat/completions", json=body), (200,))

    async def stream(self, http: httpx.AsyncClient, rng: random.Random, pause: float = 0, leave: int = 0) -> None:
        """A stream, read to its end unless `leave`."""
        kind = "slow" if pause else "gone" if leave else "stream"
        async with http.stream("POST", "/v1/chat/completions", json=self._body(rng, stream=True)) as response:
            if not await self._seen(kind, response, (200,)):
                return
            last, count = "", 0
            async for line in response.aiter_lines():
                last, count = line or last, count + 1
                if leave and count > leave:
                    return
                await asyncio.sleep(pause)
            if last != "data: [DONE]" and not leave:
                self.surprises.append(f"{kind}: the stream ended with {last[:200]}")

    async def slow(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """A stream that is read slowly."""
        await self.stream(http, rng, pause=0.05)

    async def gone(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """A client that does not wait for the end."""
        if rng.random() < 0.5:
            await self.stream(http, rng, leave=rng.randint(1, 8))
            return
        try:
            body = self._body(rng)
            await self._seen("gone", await http.post("/v1/chat/completions", json=body, timeout=0.05), (200,))
        except httpx.TimeoutException:
            self.statuses["gone"] += 1

    async def harmful(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """An answer that the guard should halt; whether it does is the probe's affair."""
        body = self._body(rng, messages=rng.choice(self.attacks), temperature=0, max_tokens=self.tokens)
        response = await http.post("/v1/chat/completions", json=body)
        if await self._seen("harmful", response, (200,)):
            choice = response.json()["choices"][0]
            self.statuses[choice["finish_reason"]] += 1
            if choice["finish_reason"] == "content_filter" and not choice["message"]["content"].strip():
                self.surprises.append("harmful: a blocked answer was empty")

    async def malformed(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """Something that is no good request."""
        bodies: list[bytes] = [
            b"", b"{", b"[]", b"\xff", b'{"model": 5}', json.dumps(self._body(rng, messages=[])).encode(),
            json.dumps(self._body(rng, model="another")).encode(), json.dumps(self._body(rng, top_logprobs=3)).encode(),
            json.dumps(self._body(rng, anydepth={"release": "monitor"})).encode(), b"x" * 2_000_000,
        ]  # fmt: skip
        headers = {"content-type": "application/json"}
        response = await http.post("/v1/chat/completions", content=rng.choice(bodies), headers=headers)
        await self._seen("malformed", response, (400, 404, 413))


async def watch(process: psutil.Process, load: Load, samples: list[dict[str, float]]) -> None:
    """Note memory and the engine's gauges every few seconds."""
    begun = time.monotonic()
    step = max(1.0, (load.until - begun) / 180)
    async with httpx.AsyncClient(base_url=load.url, timeout=30) as http:
        while time.monotonic() < load.until:
            gauges = gauges_of((await http.get("/metrics")).text)
            memory = process.memory_info().rss / 2**20
            at = time.monotonic() - begun
            files = process.num_fds()
            samples.append(
                {"seconds": at, "rss_mib": memory, "files": files, "threads": process.num_threads(), **gauges}
            )
            await asyncio.sleep(step)


def gauges_of(text: str) -> dict[str, float]:
    """The gauges of the engine."""
    lines = [line.split(" ") for line in text.splitlines() if line.startswith(("anydepth_live", "anydepth_queue"))]
    return {name.removeprefix("anydepth_"): float(value) for name, value in lines}


def prompts_of(model: Path | None) -> tuple[list[list[dict[str, str]]], list[list[dict[str, str]]]]:
    """Prompts for the model, and ones whose answers the guard should halt."""
    if model is None:
        from tests.server.tiny_model import PROMPTS

        chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        return chats, chats
    demo = tomllib.loads((resources.files("anydepth") / "data" / "demo.toml").read_text(encoding="utf-8"))["demo"]
    attack = [{"role": "user", "content": demo["request"]}, {"role": "assistant", "content": demo["prefill"]}]
    questions = [
        "How do vaccines work?",
        "Write a short poem about rain.",
        "Explain how bread rises.",
        "Name five rivers.",
    ]
    return [[{"role": "user", "content": question}] for question in questions], [attack]


def summary(
    load: Load, samples: list[dict[str, float]], audit: Path, exit_code: int, idle: dict[str, float]
) -> dict[str, Any]:
    """The report; every line of `verdict` must be true."""
    trail = verify_audit(audit)
    third = len(samples) // 3
    middle, last = ([s["rss_mib"] for s in part] for part in (samples[third : 2 * third], samples[2 * third :]))
    growth = statistics.median(last) / statistics.median(middle) - 1 if middle else 0.0
    verdict = {
        "no 5xx": not any(status.startswith("5") for status in load.statuses),
        "no surprises": not load.surprises,
        "no token left unchecked": trail.ok and trail.unchecked == 0 and trail.unfinished == 0,
        "some answers were blocked": trail.blocked > 0,
        "no session leaked": idle == {"live_answers": 0, "queue_length": 0},
        "memory is flat": growth < GROWTH,
        "clean exit": exit_code == 0,
    }
    return {
        "verdict": verdict,
        "requests": dict(load.done),
        "statuses": dict(load.statuses),
        "surprises": load.surprises[:20],
        "audit": {
            "answers": dict(trail.answers), "blocked": trail.blocked, "released_tokens": trail.released,
            "withheld_tokens": trail.withheld, "violations": trail.violations[:20],
        },
        "memory": {"growth": round(growth, 4), "median_middle_mib": statistics.median(middle or [0]),
                   "median_last_mib": statistics.median(last or [0]), "max_mib": max(s["rss_mib"] for s in samples)},
        "most_files": max(s["files"] for s in samples),
        "most_threads": max(s["threads"] for s in samples),
        "machine": {"platform": platform.platform(), "python": platform.python_version()},
        "samples": [{name: round(value, 1) for name, value in sample.items()} for sample in samples],
    }  # fmt: skip


def scripted_api() -> fake_api.FakeApi:
    """An API with answers of 96 pieces, 5 milliseconds each; every fiftieth look-ahead, drawn, refuses."""
    rng = random.Random(0)
    script = fake_api.Script(
        answer=fake_api.ANSWER * 12,
        look_ahead=lambda _partial: fake_api.NO if rng.random() < 0.02 else fake_api.YES,
        before=lambda _number: time.sleep(0.005),
        requests=_Short(),
    )
    return fake_api.FakeApi(script)


async def soak(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run it all."""
    model, api = arguments.model, scripted_api() if arguments.proxy else None
    served = probe = None
    if api is not None:
        model = Path("scripted")
    elif model is None:
        from tests.server import tiny_model

        served = tiny_model.build(folder / "tiny", blocked=0.3)
        probe = served / tiny_model.PROBE
    else:
        served, probe = model, arguments.probe
    audit = folder / "audit.jsonl"
    config, policy = folder / "guard.toml", ""
    if arguments.threshold is not None:
        policy = f'[guard]\npolicy = {{name = "threshold", threshold = {arguments.threshold}}}\n'
    config.write_text(
        f'[audit]\nkind = "jsonl"\npath = "{audit}"\nmax_bytes = 1000000\nkeep = 100000\n'
        "[limits]\nlive = 4\nqueue = 12\n"
        f"{policy}"
    )
    command = ["-m", "anydepth", "proxy" if api else "serve", *([] if api else [str(served)])]
    command += ["--config", str(config), "--port", "0", "--name", "soak"]
    if api is not None:
        command += ["--upstream", f"{api.url}/v1", "--model", "m"]
    else:
        command += ["--dtype", arguments.dtype, *(["--probe", str(probe)] if probe else [])]
    server = ServerProcess(command, wait=300)
    server.log = _Short()
    server.raw = _Short()
    prompts, harmful = prompts_of(model)
    if api is not None:  # a prefill cannot be continued over it; which answer is blocked is drawn
        harmful = prompts
    load = Load(server.url, "soak", prompts, harmful, time.monotonic() + 60 * arguments.minutes, arguments.tokens)
    samples: list[dict[str, float]] = []
    try:
        process = psutil.Process(server.process.pid)
        await asyncio.gather(watch(process, load, samples), *(load.client(i) for i in range(arguments.clients)))
        await asyncio.sleep(3)
        idle = gauges_of(server.get("/metrics").text)
    finally:
        exit_code = server.stop()
        if api is not None:
            api.close()
    return summary(load, samples, audit, exit_code, idle)


class _Short(list[Any]):
    """A list that keeps its last items only: the log of a soak would fill the memory of this process."""

    def append(self, item: Any) -> None:
        super().append(item)
        del self[:-1000]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=120, help="longest answer")
    parser.add_argument("--model", type=Path, help="folder of a model; default: a tiny random one")
    parser.add_argument("--proxy", action="store_true", help="`anydepth proxy` before a scripted API, no model")
    parser.add_argument("--probe", type=Path, help="default: the one that is shipped for the model")
    parser.add_argument(
        "--threshold", type=float, help="halt at one check that reaches it; default: the probe's policy"
    )
    parser.add_argument("--dtype", default="float32", help="of the model; bfloat16 is slow on CPUs without AMX")
    parser.add_argument("--out", type=Path, help="write the report here as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(soak(arguments, Path(folder)))
    report["arguments"] = {
        name: value.name if isinstance(value, Path) else value for name, value in vars(arguments).items()
    }
    text = json.dumps(report, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(json.dumps({**report, "samples": len(report["samples"])}, indent=2))
    return 0 if all(report["verdict"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
