"""NeMo Guardrails with the configuration of examples/nemo and a scripted model; prints a line of JSON per case.

Run by test_nemo.py in an environment that has nemoguardrails: `python nemo_cases.py CONFIG_FOLDER PAGE_EXAMPLE`.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.testing import FakeLLMModel

FOLDER = sys.argv[1]
FINE = "all is well here and goes on for a while"
LATE = "all is well here, and then comes the harm, and more of it"


def config_of(**changes: Any) -> RailsConfig:
    """The example's configuration; `changes` are of `rails.output` and, with `streaming_`, of its streaming."""
    config = RailsConfig.from_path(FOLDER)
    for name, value in changes.items():
        place, key = config.rails.output, name
        if name.startswith("streaming_"):
            place, key = config.rails.output.streaming, name.removeprefix("streaming_")
        elif name.startswith("input_"):
            place, key = config.rails.input, name.removeprefix("input_")
        elif name == "enable_rails_exceptions":
            place = config
        setattr(place, key, value)
    return config


def ask(text: str, answer: str, **changes: Any) -> Callable[[], Any]:
    def run() -> Any:
        model = FakeLLMModel(responses=[answer])
        rails = LLMRails(config_of(**changes), llm=model)
        reply = rails.generate(messages=[{"role": "user", "content": text}])
        return [reply["role"], reply["content"], model.inference_count]

    return run


def stream(text: str, answer: str, **changes: Any) -> Callable[[], Any]:
    async def read() -> Any:
        model = FakeLLMModel(responses=[answer])
        rails = LLMRails(config_of(**changes), llm=model)
        chunks = [chunk async for chunk in rails.stream_async(messages=[{"role": "user", "content": text}])]
        return [chunks, model.inference_count]

    return lambda: asyncio.run(read())


def out_of_order(run: Callable[[], Any]) -> Callable[[], Any]:
    """Answers are not scanned, while messages are."""

    def with_half_a_server() -> Any:
        import httpx

        real = httpx.AsyncClient.post

        async def post(client: Any, url: str, *, json: Any) -> Any:
            if len(json["input"]) > 1:
                raise httpx.ReadTimeout("no reply")
            return await real(client, url, json=json)

        httpx.AsyncClient.post = post  # pyright: ignore[reportAttributeAccessIssue]
        try:
            return run()
        finally:
            httpx.AsyncClient.post = real

    return with_half_a_server


def unreachable(run: Callable[[], Any]) -> Callable[[], Any]:
    def with_nobody() -> Any:
        base = os.environ["ANYDEPTH_API_BASE"]
        os.environ["ANYDEPTH_API_BASE"] = "http://127.0.0.1:9/v1"
        try:
            return run()
        finally:
            os.environ["ANYDEPTH_API_BASE"] = base

    return with_nobody


def warned() -> Any:
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    keep = Keep()
    logging.getLogger("anydepth.nemo").addHandler(keep)
    try:
        chunks, _ = stream("hello", LATE, streaming_chunk_size=4, streaming_context_size=1)()
    finally:
        logging.getLogger("anydepth.nemo").removeHandler(keep)
    return [records, chunks]


def page() -> Any:
    names: dict[str, Any] = {}
    import nemoguardrails

    real = nemoguardrails.LLMRails
    nemoguardrails.LLMRails = lambda config: real(config, llm=FakeLLMModel(responses=[FINE, LATE]))
    try:
        exec(sys.argv[2], names)
    finally:
        nemoguardrails.LLMRails = real
    return [names["reply"]["content"], names["text"]]


CASES: dict[str, Callable[[], Any]] = {
    "fine": ask("hello", FINE),
    "late": ask("hello", LATE),
    "request": ask("harm: hello", FINE),
    "exception": ask("hello", LATE, enable_rails_exceptions=True, streaming_enabled=False),
    "exception of a request": ask("harm: hello", FINE, enable_rails_exceptions=True, streaming_enabled=False),
    "exceptions and streams": ask("hello", FINE, enable_rails_exceptions=True),
    "fine, streamed": stream("hello", FINE),
    "late, streamed": stream("hello", LATE),
    "request, streamed": stream("harm: hello", FINE),
    "nobody": unreachable(ask("hello", FINE)),
    "nobody, streamed": unreachable(stream("hello", FINE)),
    "no scan of the answer": out_of_order(ask("hello", FINE)),
    "no scan of the answer, streamed": out_of_order(stream("hello", FINE)),
    "parallel": ask("hello", FINE, parallel=True),
    "parallel input": ask("hello", FINE, input_parallel=True),
    "stream first": ask("hello", FINE, streaming_stream_first=True),
    "large context": ask("hello", FINE, streaming_chunk_size=10, streaming_context_size=10),
    "no context": ask("hello", FINE, streaming_chunk_size=10, streaming_context_size=0),
    "windows": warned,
    "page": page,
}


if __name__ == "__main__":
    logging.getLogger("nemoguardrails").setLevel(logging.CRITICAL)
    for name, case in CASES.items():
        try:
            outcome = case()
        except Exception as error:
            cause = error.__cause__ or error
            outcome = {"error": type(cause).__name__, "text": str(cause)}
        sys.stdout.write(json.dumps({"case": name, "outcome": outcome}, default=str) + "\n")
