"""Ask a guarded server as real clients do, and print what each of them made of the answer.

Run by test_clients.py in an environment that has the clients: `python client_cases.py CLIENT URL`. Prints a line of
JSON per case: its name, how many requests it cost, and what came of it.
"""

import json
import sys
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

LATE = "say: all is well here, and then comes the harm, and more of it than one window has"
FIRST = "harm: all is well"
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'
CALLED = f"say: Let me look. {CALL} and on it goes for a while, on and on, until the harm comes, and more of it"
BOOKED = '{"city": "Ulm", "guests": 12}'
HALF = '{"city": "all is well here, and then comes the harm, and more of it than one window has'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
PATH = 'anydepth_requests_total{path="/v1/chat/completions"'

Cases = Iterator[tuple[str, Callable[[], Any]]]


def requests_of(url: str) -> int:
    """How many chats the server was asked for."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(PATH)))


def _booking() -> Any:
    """What answers that have to be JSON are parsed as."""
    import pydantic

    return pydantic.create_model("Booking", city=(str, ...), guests=(int, ...))


def _call(name: str, arguments: str) -> str:
    """What has the server answer with a call."""
    return f'say: <tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def of_openai(url: str) -> Cases:
    import openai

    chat = openai.OpenAI(base_url=f"{url}/v1", api_key="none").chat.completions

    def ask(text: str, **options: Any) -> dict[str, Any]:
        return {"model": "scripted", "messages": [{"role": "user", "content": text}], **options}

    def create(text: str) -> Any:
        choice = chat.create(**ask(text)).choices[0]
        return [choice.message.content, choice.finish_reason, choice.anydepth["halted"]]

    def parse() -> Any:
        try:
            chat.parse(**ask(LATE))
        except openai.ContentFilterFinishReasonError as error:
            return error.completion.choices[0].anydepth["halted"]

    def booking(text: str) -> Any:
        (choice,) = chat.parse(**ask(text), response_format=_booking()).choices
        return [choice.message.parsed.city, choice.message.parsed.guests]

    def stream(text: str) -> Any:
        choices = [chunk.choices[0] for chunk in chat.create(**ask(text), stream=True)]
        text = "".join(choice.delta.content or "" for choice in choices)
        return [text, choices[-1].finish_reason, choices[-1].anydepth["halted"]]

    yield "late", lambda: create(LATE)
    yield "first", lambda: create(FIRST)
    yield "parse", parse
    yield "late, streamed", lambda: stream(LATE)
    yield "first, streamed", lambda: stream(FIRST)
    yield "broken", lambda: create("break: all is well and goes on")
    yield "json", lambda: booking(f"say: {BOOKED}")
    yield "json, late", lambda: booking(f"say: {HALF}")


def of_langchain(url: str) -> Cases:
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="scripted", base_url=f"{url}/v1", api_key="none")
    ran: list[str] = []

    def weather(city: str) -> str:
        """Look the weather up."""
        ran.append(city)
        return "sunny"

    def invoke(text: str) -> Any:
        message = model.invoke(text)
        return [message.content, message.response_metadata["finish_reason"]]

    def streamed() -> Any:
        parts = list(model.stream(LATE))
        reasons = [part.response_metadata.get("finish_reason") for part in parts]
        return ["".join(part.content for part in parts), [reason for reason in reasons if reason]]

    def agent(*, stream: bool) -> Any:
        ran.clear()
        graph, asked = create_agent(model, [weather]), {"messages": [{"role": "user", "content": CALLED}]}
        if stream:
            last = [part for part, _ in graph.stream(asked, stream_mode="messages")]
            return [ran, "".join(str(part.content) for part in last)]
        return [ran, graph.invoke(asked)["messages"][-1].content]

    def booking(text: str, method: str) -> Any:
        found = model.with_structured_output(_booking(), method=method).invoke(text)
        return [found.city, found.guests]

    yield "late", lambda: invoke(LATE)
    yield "first", lambda: invoke(FIRST)
    yield "json", lambda: booking(f"say: {BOOKED}", "json_schema")
    yield "json, late", lambda: booking(f"say: {HALF}", "json_schema")
    yield "call", lambda: booking(_call("Booking", BOOKED), "function_calling")
    yield "call, late", lambda: booking(_call("Booking", HALF), "function_calling")
    yield "late, streamed", streamed
    yield "agent", lambda: agent(stream=False)
    yield "agent, streamed", lambda: agent(stream=True)


def of_pydantic_ai(url: str) -> Cases:
    from pydantic_ai import Agent, NativeOutput, ToolOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    ran: list[str] = []
    model = OpenAIChatModel("scripted", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
    agent = Agent(model)

    @agent.tool_plain
    def weather(city: str) -> str:
        """Look the weather up."""
        ran.append(city)
        return "sunny"

    def run(text: str) -> Any:
        result = agent.run_sync(text)
        return [result.output, result.response.finish_reason]

    def called() -> Any:
        ran.clear()
        return [ran, agent.run_sync(CALLED).output]

    def booking(text: str, output: Any) -> Any:
        found = Agent(model, output_type=output).run_sync(text).output
        return [found.city, found.guests]

    yield "late", lambda: run(LATE)
    yield "first", lambda: run(FIRST)
    yield "json", lambda: booking(f"say: {BOOKED}", NativeOutput(_booking()))
    yield "json, late", lambda: booking(f"say: {HALF}", NativeOutput(_booking()))
    yield "call", lambda: booking(_call("final_result", BOOKED), ToolOutput(_booking()))
    yield "call, late", lambda: booking(_call("final_result", HALF), ToolOutput(_booking()))
    yield "agent", called


def of_litellm(url: str) -> Cases:
    import litellm

    def ask(text: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return litellm.completion(
            model="openai/scripted", api_base=f"{url}/v1", api_key="none", messages=messages, **options
        )

    def whole(text: str) -> Any:
        choice = ask(text).choices[0]
        return [choice.message.content, choice.finish_reason, choice.provider_specific_fields["anydepth"]["halted"]]

    def streamed() -> Any:
        choices = [chunk.choices[0] for chunk in ask(LATE, stream=True)]
        text = "".join(choice.delta.content or "" for choice in choices)
        fields = [choice.delta.provider_specific_fields for choice in choices]
        told = [each["anydepth"]["halted"] for each in fields if each and "anydepth" in each]
        return [text, choices[-1].finish_reason, told]

    yield "late", lambda: whole(LATE)
    yield "first", lambda: whole(FIRST)
    yield "late, streamed", streamed


def of_llama_index(url: str) -> Cases:
    import asyncio

    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    model = OpenAILike(
        model="scripted", api_base=f"{url}/v1", api_key="none", is_chat_model=True, is_function_calling_model=True
    )
    ran: list[str] = []

    def weather(city: str) -> str:
        """Look the weather up."""
        ran.append(city)
        return "sunny"

    def whole(text: str) -> Any:
        reply = model.chat([ChatMessage(role="user", content=text)])
        return [reply.message.content, reply.raw.choices[0].finish_reason, reply.raw.choices[0].anydepth["halted"]]

    def streamed(text: str) -> Any:
        parts = list(model.stream_chat([ChatMessage(role="user", content=text)]))
        return [parts[-1].message.content, parts[-1].raw.choices[0].finish_reason]

    def agent() -> Any:
        ran.clear()

        async def run() -> str:
            return str(await FunctionAgent(tools=[weather], llm=model).run(CALLED))

        return [ran, asyncio.run(run())]

    def booking(text: str) -> Any:
        found = model.as_structured_llm(_booking()).chat([ChatMessage(role="user", content=text)]).raw
        return [found.city, found.guests]

    yield "late", lambda: whole(LATE)
    yield "first", lambda: whole(FIRST)
    yield "late, streamed", lambda: streamed(LATE)
    yield "first, streamed", lambda: streamed(FIRST)
    yield "agent", agent
    yield "call", lambda: booking(_call("Booking", BOOKED))
    yield "call, late", lambda: booking(_call("Booking", HALF))


CLIENTS = {
    "openai": of_openai,
    "langchain": of_langchain,
    "pydantic-ai": of_pydantic_ai,
    "litellm": of_litellm,
    "llama-index": of_llama_index,
}


if __name__ == "__main__":
    client, url = sys.argv[1:]
    for name, case in CLIENTS[client](url):
        before = requests_of(url)
        try:
            outcome = case()
        except Exception as error:
            outcome = {"error": type(error).__name__, "text": str(error)}
        record = {"case": name, "requests": requests_of(url) - before, "outcome": outcome}
        sys.stdout.write(json.dumps(record) + "\n")
