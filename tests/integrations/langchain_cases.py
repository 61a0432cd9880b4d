"""Ask a guard through LangChain, and print a line of JSON for what came of each case; run by test_langchain.py."""

import asyncio
import json
import sys
from typing import Any

from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from anydepth import Guard
from anydepth.integrations.langchain_chat import ChatAnydepth
from anydepth.schedule import Every
from anydepth.testing import ScriptedBackend, ScriptedDetector

FINE = "all is well here, and it stays so"
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'
HARM_FROM = 16
ran: list[str] = []


def weather(city: str) -> str:
    """Look the weather up."""
    ran.append(city)
    return "sunny"


def model(answer: str, *, harm_from: int | None = None, scores: Any = None, **options: Any) -> ChatAnydepth:
    scores = scores or ({0: 0.1} if harm_from is None else {0: 0.1, harm_from: 0.9})
    backend = ScriptedBackend([answer])
    backend.tokenizer.all_special_tokens = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    release = options.pop("release", "hold")
    guard = Guard.from_backend(backend, ScriptedDetector(scores), schedule=Every(8), refusal="No.", release=release)
    return ChatAnydepth(guard=guard, **{"tool_format": "hermes", **options})


def seen(message: Any) -> list[Any]:
    report = message.response_metadata["anydepth"]
    return [message.content, message.response_metadata["finish_reason"], report["halted"], report["depth"]]


def prompt_of(chat: ChatAnydepth, messages: list[Any], **options: Any) -> list[Any]:
    asked: list[Any] = []
    opened = chat.guard.backend.open

    def note(prompts: Any, **given: Any) -> Any:
        asked.append((prompts[0], given))
        return opened(prompts, **given)

    chat.guard.backend.open = note
    chat.invoke(messages, **options)
    (prompt, given) = asked[0]
    return [chat.guard.template.tokenizer.decode(prompt.ids), prompt.prefill, given]


def streamed(chat: ChatAnydepth) -> Any:
    class Tokens(BaseCallbackHandler):
        got: list[str] = []  # noqa: RUF012

        def on_llm_new_token(self, token: str, **_: Any) -> None:
            self.got.append(token)

    parts = list(chat.stream("q", config={"callbacks": [Tokens()]}))
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return [[part.text for part in parts if part.text], *seen(whole)[1:], [each for each in Tokens.got if each]]


async def astreamed(chat: ChatAnydepth) -> Any:
    parts = [part async for part in chat.astream("q")]
    return ["".join(part.text for part in parts), parts[-1].response_metadata["finish_reason"]]


async def stopped(chat: ChatAnydepth) -> Any:
    answer = chat.astream("q")
    await anext(answer)
    await answer.aclose()
    del answer  # LangChain leaves the model's own iterator to the garbage collector
    for _ in range(1000):
        if chat.guard.backend.sessions[0].closed:
            return "closed"
        await asyncio.sleep(0.01)
    return "still open"


def agent(answer: str, *, harm_from: int | None = None, stream: bool = False) -> Any:
    ran.clear()
    graph = create_agent(model(answer, harm_from=harm_from), [weather])
    asked = {"messages": [{"role": "user", "content": "q"}]}
    if stream:
        parts = [part for part, _ in graph.stream(asked, {"recursion_limit": 4}, stream_mode="messages")]
        return [ran, "".join(part.text for part in parts)]
    return [ran, graph.invoke(asked, {"recursion_limit": 4})["messages"][-1].content]


def called(chat: ChatAnydepth) -> Any:
    message = chat.bind_tools([weather]).invoke("q")
    return [
        message.content,
        [[c["name"], c["args"]] for c in message.tool_calls],
        message.response_metadata["finish_reason"],
    ]


def cached() -> Any:
    from langchain_core.caches import InMemoryCache
    from langchain_core.globals import set_llm_cache

    set_llm_cache(InMemoryCache())
    try:
        model(FINE).invoke("q")
        strict = model(FINE, harm_from=0)
        return strict.invoke("q").response_metadata["finish_reason"]
    finally:
        set_llm_cache(None)


def broken(row: int, depth: int) -> Any:
    return RuntimeError("no states") if depth >= 8 else 0.1


HISTORY = [
    SystemMessage("be kind"),
    HumanMessage(["a ", {"type": "text", "text": "b"}]),
    AIMessage("", tool_calls=[{"name": "weather", "args": {"city": "Ulm"}, "id": "1"}]),
    ToolMessage("sunny", tool_call_id="1"),
    HumanMessage("and now?"),
]
PICTURE = [HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}])]

CASES = {
    "fine": lambda: [*seen(message := model(FINE).invoke("q")), message.usage_metadata],
    "late": lambda: seen(model(FINE, harm_from=HARM_FROM).invoke("q")),
    "first": lambda: seen(model(FINE, harm_from=0).invoke("q")),
    "async": lambda: seen(asyncio.run(model(FINE, harm_from=HARM_FROM).ainvoke("q"))),
    "streamed": lambda: streamed(model(FINE)),
    "late, streamed": lambda: streamed(model(FINE, harm_from=HARM_FROM)),
    "late, streamed, async": lambda: asyncio.run(astreamed(model(FINE, harm_from=HARM_FROM))),
    "stopped": lambda: asyncio.run(stopped(model(FINE))),
    "monitored": lambda: seen(model(FINE, harm_from=HARM_FROM, release="monitor").invoke("q")),
    "failed check": lambda: seen(model(FINE, scores=broken).invoke("q")),
    "batch": lambda: [seen(each)[0] for each in model(FINE).batch(["q"] * 4)],
    "call": lambda: called(model(f"Let me look. {CALL}")),
    "call, late": lambda: called(model(f"Let me look. {CALL} and on it goes", harm_from=80)),
    "agent": lambda: agent(f"Let me look. {CALL} and on it goes", harm_from=80),
    "agent, streamed": lambda: agent(f"Let me look. {CALL} and on it goes", harm_from=80, stream=True),
    "prompt": lambda: prompt_of(model(FINE), HISTORY, stop=["stay"], temperature=0.5),
    "prefill": lambda: prompt_of(
        model(FINE, generation={"seed": 3}), [HumanMessage("q"), AIMessage("Well")], max_tokens=4
    ),
    "stop": lambda: seen(model(FINE).invoke("q", stop=[", and"])),
    "cached": cached,
    "picture": lambda: model(FINE).invoke(PICTURE),
    "forced": lambda: model(FINE).bind_tools([weather], tool_choice="any"),
    "forced later": lambda: model(FINE).bind_tools([weather]).invoke("q", tool_choice="weather"),
    "json": lambda: model(FINE).with_structured_output({"title": "A", "type": "object", "properties": {}}),
    "no format": lambda: model(FINE, tool_format="auto").bind_tools([weather]),
}


if __name__ == "__main__":
    for name, case in CASES.items():
        try:
            outcome = case()
        except Exception as error:
            outcome = {"error": type(error).__name__, "text": str(error)}
        sys.stdout.write(json.dumps({"case": name, "outcome": outcome}) + "\n")
