"""The Open WebUI example: its filter under Open WebUI's own runner of filters, and a guarded server.

Open WebUI itself is gigabytes. Of its wheel the one module is loaded that calls filters, `open_webui.utils.filter`; its
database and its loader of functions are stand-ins here. The chunks go through as its middleware sends them: an event
for which a filter gives nothing is dropped, and so is one that makes it raise.
"""

import asyncio
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.fetched import alone, cache_root
from tests.server.process import ServerProcess

pytestmark = [pytest.mark.registry, pytest.mark.slow]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "openwebui" / "anydepth_filter.py"
VERSION = "0.12.4"
FINE = "fine words " * 80
REFUSAL = "I can't help with that."


def runner_source() -> Path:
    """`open_webui/utils/filter.py` of the wheel, fetched once a machine."""
    path = cache_root() / f"open-webui-{VERSION}-filter.py"
    with alone(path.name), tempfile.TemporaryDirectory(dir=cache_root()) as scratch:
        if not path.exists():
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                f"open-webui=={VERSION}",
                "-d",
                scratch,
            ]
            subprocess.run(command, check=True, timeout=900)
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                path.write_bytes(archive.read("open_webui/utils/filter.py"))
    return path


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Request:
    """Stands for Starlette's: one a chat."""


class WebUI:
    """Asks one filter as Open WebUI does."""

    def __init__(self, runner: ModuleType, valves: dict[str, Any]) -> None:
        self.runner, self.request, self.told = runner, Request(), list[Any]()
        self.valves = valves
        self.filter = load("anydepth_filter", EXAMPLE).Filter()

    async def run(self, kind: str, data: Any) -> Any:
        async def valves_by_ids(ids: list[str]) -> dict[str, Any]:
            return {"anydepth": self.valves}

        async def module(*_: Any, **__: Any) -> Any:
            return self.filter, "filter", {}

        async def emit(event: Any) -> None:
            self.told.append(event)

        self.runner.Functions.get_function_valves_by_ids = valves_by_ids
        self.runner.get_function_module_from_cache = module
        result, _ = await self.runner.process_filter_functions(
            request=self.request,
            filter_context=None,
            filter_functions=[SimpleNamespace(id="anydepth")],
            filter_type=kind,
            form_data=data,
            extra_params={
                "__request__": self.request,
                "__event_emitter__": emit,
                "__metadata__": {},
                "__user__": {"id": "u"},
            },
        )
        return result

    async def shown(self, events: list[Any]) -> list[Any]:
        """What is left of a stream."""
        out = []
        for event in events:
            try:
                result = await self.run("stream", event)
            except Exception:
                continue
            out += [result] if result else []
        return out

    def chat(self, text: str, events: list[Any], **body: Any) -> list[Any]:
        async def all_of_it() -> list[Any]:
            asked = {"stream": True, "messages": [{"role": "user", "content": text}], **body}
            await self.run("request", await self.run("inlet", asked))
            return await self.shown(events)

        return asyncio.run(all_of_it())


@pytest.fixture(scope="module")
def runner() -> Iterator[ModuleType]:
    env, functions, plugin = (ModuleType(f"open_webui.{name}") for name in ("env", "models.functions", "utils.plugin"))
    env.ENABLE_FUNCTIONS = True  # pyright: ignore[reportAttributeAccessIssue]
    functions.Functions = SimpleNamespace()  # pyright: ignore[reportAttributeAccessIssue]
    plugin.get_function_module_from_cache = None  # pyright: ignore[reportAttributeAccessIssue]
    packages = {name: ModuleType(name) for name in ("open_webui", "open_webui.models", "open_webui.utils")}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {**packages, **{each.__name__: each for each in (env, functions, plugin)}}.items():
            patch.setitem(sys.modules, name, module)
        yield load("open_webui_filter", runner_source())


@pytest.fixture(scope="module")
def guard() -> Iterator[ServerProcess]:
    with ServerProcess.scripted({}, env={"ANYDEPTH_API_KEY": "of-the-guard"}) as running:
        yield running


@pytest.fixture
def webui(runner: ModuleType, guard: ServerProcess) -> WebUI:
    return WebUI(runner, {"api_base": f"{guard.url}/v1", "api_key": "of-the-guard"})


def delta(**fields: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": fields, "finish_reason": None}],
    }


def end(reason: str = "stop") -> dict[str, Any]:
    return {"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def spoken(text: str) -> list[Any]:
    return [delta(content=text[at : at + 5]) for at in range(0, len(text), 5)]


def text_of(events: list[Any]) -> str:
    deltas = [choice["delta"] for event in events for choice in event.get("choices", [])]
    return "".join(each.get("content", "") for each in deltas)


def test_an_answer_leaves_window_by_window(webui):
    shown = webui.chat("q", [*spoken(FINE), end(), {"usage": {"total_tokens": 9}}])
    assert text_of(shown) == FINE
    sizes = [len(event["choices"][0]["delta"].get("content", "")) for event in shown[:-1]]
    assert sizes == [400, 400, 80] and shown[-2]["choices"][0]["finish_reason"] == "stop"
    assert shown[-1] == {"usage": {"total_tokens": 9}} and webui.told == []


def test_a_block_empties_the_rest_and_puts_the_refusal_in_once(webui):
    shown = webui.chat("q", [*spoken(f"{FINE}and the harm {FINE}"), end()])
    assert text_of(shown) == FINE[:800] + "\n\n" + REFUSAL
    assert shown[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert [event["data"]["description"] for event in webui.told] == [
        "anydepth: the conversation was flagged as harmful"
    ]


def test_harm_at_once_shows_the_refusal_only(webui):
    shown = webui.chat("q", [*spoken("harm"), end()])
    assert text_of(shown) == REFUSAL and len(shown) == 1


def test_thoughts_and_calls_are_read_and_calls_leave_at_the_end(webui):
    def call(arguments: str, name: str | None = None) -> Any:
        return delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": name, "arguments": arguments}}])

    events = [
        delta(reasoning_content="let me see " * 50),
        *spoken("I look. "),
        call("", "look_up"),
        call('{"a": '),
        call("1}"),
    ]
    shown = webui.chat("q", [*events, *spoken(FINE), end("tool_calls")])
    assert [bool(event["choices"][0]["delta"].get("tool_calls")) for event in shown] == [False, True]
    assert shown[0]["choices"][0]["delta"] == {"reasoning_content": "let me see " * 50}
    (called,) = shown[1]["choices"][0]["delta"]["tool_calls"]
    assert called["function"] == {"name": "look_up", "arguments": '{"a": 1}'}
    for harmful in (call('{"a": "harm"}', "look_up"), delta(reasoning_content="harm"), delta(reasoning="harm")):
        shown = webui.chat("q", [harmful, end()])
        assert [event["choices"][0]["delta"] for event in shown] == [{"content": REFUSAL}]


def test_a_stream_that_never_ends_shows_no_more_than_was_scanned(webui):
    assert text_of(webui.chat("q", spoken(FINE))) == FINE[:800]


def test_the_whole_answer_is_held_back_where_the_window_is_none(webui):
    webui.valves["window_chars"] = 0
    assert [text_of([event]) for event in webui.chat("q", [*spoken(FINE), end()])] == [FINE]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": [{"role": "user", "content": "harm: q"}]}, "flagged as harmful"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text can be scanned"),
        ({"stream": False}, "only streamed answers can be held back"),
    ],
)
def test_a_request_that_does_not_pass_is_an_error_before_a_model_is_called(webui, body, words):
    with pytest.raises(Exception, match=words):
        webui.chat("q", [], **body)


def test_what_a_tool_gave_back_is_scanned_before_the_model_reads_it(webui):
    webui.chat("q", [delta(content="I look."), end("tool_calls")])
    messages = [
        {"role": "user", "content": "q"},
        {"role": "tool", "content": "rain"},
        {"role": "user", "content": "harm: q"},
    ]
    with pytest.raises(Exception, match="flagged as harmful"):
        asyncio.run(webui.run("request", {"stream": True, "messages": messages}))


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.output_text.delta", "delta": "hello"},
        {"event": {"type": "message", "data": {"content": "hello"}}},
        delta(images=[{"url": "data:,"}]),
        {"id": "1", "choices": [{"index": 0, "message": {"content": "hello"}}]},
    ],
)
def test_what_cannot_be_read_is_not_shown(webui, event):
    shown = webui.chat("q", [event, *spoken("hello"), end()])
    assert text_of(shown) == REFUSAL and len(shown) == 1


def test_sources_and_notices_pass(webui):
    notice = {"event": {"type": "status", "data": {"description": "searching"}}}
    assert webui.chat("q", [{"sources": []}, notice]) == [{"sources": []}, notice]


def test_nothing_is_shown_while_the_guard_is_down(webui):
    nowhere = {"api_base": "http://127.0.0.1:9/v1"}  # the discard port: nothing listens
    with pytest.raises(Exception, match="the guard cannot be reached"):
        WebUI(webui.runner, nowhere).chat("q", [])

    async def goes_down() -> list[Any]:
        await webui.run("inlet", {"stream": True, "messages": [{"role": "user", "content": "q"}]})
        webui.valves |= nowhere
        return await webui.shown([*spoken("hello"), end()])

    assert text_of(asyncio.run(goes_down())) == REFUSAL
    assert "cannot be reached" in webui.told[0]["data"]["description"]


def test_an_answer_to_a_request_that_was_not_scanned_is_not_shown(webui):
    assert text_of(asyncio.run(webui.shown([*spoken("hello"), end()]))) == REFUSAL


def test_an_answer_that_was_no_stream_is_scanned_before_it_is_stored(webui):
    def stored(answer: str) -> str:
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
        return asyncio.run(webui.run("outlet", {"messages": messages}))["messages"][-1]["content"]

    assert stored("hello") == "hello" and stored("the harm") == REFUSAL
    webui.chat("q", [*spoken("hello"), end()])
    assert stored("hello") == "hello"
