#!/usr/bin/env python3
"""What `anydepth proxy` adds to the time of an answer: one guard over one API, in process and behind the proxy.

    proxy_overhead.py [--rounds 7] [--pieces 96] [--milliseconds 20] [-o FILE.json]

The API follows a script: a stream of `--pieces` pieces, one every `--milliseconds`, and look-aheads that do not refuse.
Each round asks once in process and once through the proxy, in turn, in the other order each second round, for a whole
answer and for a stream. Ratios are proxy over in process: the median over the rounds with all of their values.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from openai import OpenAI  # noqa: E402

from anydepth import Guard, Rethink  # noqa: E402
from anydepth.apis import ApiBackend  # noqa: E402
from anydepth.atomic import write_whole  # noqa: E402
from tests.server.process import ServerProcess  # noqa: E402
from tests.unit.apis.fake_api import ANSWER, FakeApi, Script  # noqa: E402

QUESTION = [{"role": "user", "content": "Count to eight, over and over."}]


def seconds(work: Callable[[], Any]) -> float:
    """How long `work` takes, in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pieces", type=int, default=96)
    parser.add_argument("--milliseconds", type=float, default=20)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    pieces = (ANSWER * (given.pieces // len(ANSWER) + 1))[: given.pieces]
    api = FakeApi(Script(answer=pieces, before=lambda _number: time.sleep(given.milliseconds / 1000)))
    upstream = OpenAI(base_url=f"{api.url}/v1", api_key="none")
    guard = Guard.from_backend(ApiBackend(upstream, "m"), Rethink())
    command = ["-m", "anydepth", "proxy", "--upstream", f"{api.url}/v1", "--model", "m", "--port", "0"]
    found: dict[str, list[float]] = {"whole": [], "stream": []}
    with ServerProcess(command, wait=300) as proxy:
        chat = proxy.client().with_options(timeout=600).chat.completions

        def here() -> None:
            assert guard.generate(QUESTION, max_new_tokens=1000).text == "".join(pieces)

        def whole() -> None:
            reply = chat.create(model="m", messages=QUESTION, max_tokens=1000)  # pyright: ignore[reportArgumentType]
            assert reply.choices[0].message.content == "".join(pieces)

        def stream() -> None:
            chunks = chat.create(model="m", messages=QUESTION, max_tokens=1000, stream=True)  # pyright: ignore
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == "".join(pieces)

        here(), whole(), stream()
        for number in range(given.rounds):
            for name, ask in (("whole", whole), ("stream", stream)):
                pair = [seconds(work) for work in ((here, ask) if number % 2 else (ask, here))]
                inside, behind = pair if number % 2 else pair[::-1]
                found[name].append(behind / inside)
    api.close()
    result = {
        "rounds": given.rounds, "pieces": given.pieces, "milliseconds": given.milliseconds,
        "proxy over in process": {
            name: {"median": round(median(values), 4), "values": [round(value, 4) for value in values]}
            for name, values in found.items()
        },
    }  # fmt: skip
    print(json.dumps(result["proxy over in process"]))
    if given.out:
        write_whole(given.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
