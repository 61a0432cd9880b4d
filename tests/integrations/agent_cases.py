"""Run the agents of docs/integrations/agents.md as they stand there, and print what became of their tool calls.

Run by test_agents.py in an environment that has the programs: `python agent_cases.py PROGRAM PAGE URL`. The agent's
model is scripted: it proposes to delete a file, reads what comes of it, and ends. Prints a line of JSON per case: its
name, the files that were deleted, and what the model, or the caller, was told.
"""

import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CASES = {
    "allowed": ("old.txt", ""),
    "blocked": ("harm.txt", ""),
    "no gate": ("old.txt", "/nothing"),
    "down": ("old.txt", None),
}
"""Name of a case -> the file that the model wants to delete, and what is wrong with the gate's address (None: down)."""

Told = tuple[list[str], str]


def page_of(page: str, heading: str, **given: Any) -> dict[str, Any]:
    """What the block below a heading of the page defines."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "page", **given}
    exec(compile(code, heading, "exec"), names)
    return names


def of_mcp(page: str, path: str) -> Told:
    from mcp.client.client import Client

    names = page_of(page, "MCP server")

    async def call() -> str:
        async with Client(names["server"]) as client:
            listed = await client.list_tools()  # everything else passes
            assert [tool.name for tool in listed.tools] == ["delete_file"]
            result = await client.call_tool("delete_file", {"path": path})
            return f"{result.is_error} {result.content[0].text}"

    return names["deleted"], asyncio.run(call())


def _agents_model(path: str) -> Any:
    from agents import Model, ModelResponse, Usage
    from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

    class Scripted(Model):
        asked: list[Any]

        def __init__(self) -> None:
            self.asked = []

        async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> Any:
            self.asked.append(input)
            text = ResponseOutputText(text="Let me look.", type="output_text", annotations=[])
            said = ResponseOutputMessage(
                id=f"m{len(self.asked)}", content=[text], role="assistant", status="completed", type="message"
            )
            call = ResponseFunctionToolCall(
                name="delete_file", arguments=json.dumps({"path": path}), call_id="call_1", type="function_call"
            )
            return ModelResponse([said, call] if len(self.asked) == 1 else [said], Usage(), None)

        def stream_response(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

    return Scripted()


def of_openai_agents(page: str, path: str) -> Told:
    from agents import RunConfig, Runner

    names, model = page_of(page, "OpenAI Agents SDK"), _agents_model(path)
    Runner.run_sync(names["agent"], "tidy up", run_config=RunConfig(model=model, tracing_disabled=True))
    (result,) = [item for item in model.asked[-1] if item.get("type") == "function_call_output"]
    return names["deleted"], str(result["output"])


def of_openai_agents_stopping(page: str, path: str) -> Told:
    from agents import RunConfig, Runner
    from agents.exceptions import ToolInputGuardrailTripwireTriggered

    names = page_of(page.replace("gating(Gate())", "gating(Gate(), stop=True)"), "OpenAI Agents SDK")
    config = RunConfig(model=_agents_model(path), tracing_disabled=True)
    try:
        done = Runner.run_sync(names["agent"], "tidy up", run_config=config)
        return names["deleted"], done.final_output
    except ToolInputGuardrailTripwireTriggered as error:
        return names["deleted"], f"stopped: {error.output.output_info.why}"


def _langchain_agent(page: str, path: str) -> dict[str, Any]:
    from langchain_core.language_models import FakeMessagesListChatModel
    from langchain_core.messages import AIMessage

    class Scripted(FakeMessagesListChatModel):
        def bind_tools(self, *_: Any, **__: Any) -> Any:
            return self

    call = {"name": "delete_file", "args": {"path": path}, "id": "call_1"}
    return page_of(
        page, "LangChain", model=Scripted(responses=[AIMessage("Let me look.", tool_calls=[call]), AIMessage("done")])
    )


def _tool_message(messages: list[Any]) -> str:
    (result,) = [message for message in messages if message.type == "tool"]
    assert messages[-1].content == "done"
    return f"{result.status} {result.content}"


def of_langchain(page: str, path: str) -> Told:
    names = _langchain_agent(page, path)
    done = names["agent"].invoke({"messages": [{"role": "user", "content": "tidy up"}]})
    return names["deleted"], _tool_message(done["messages"])


def of_langchain_async(page: str, path: str) -> Told:
    names = _langchain_agent(page, path)
    done = asyncio.run(names["agent"].ainvoke({"messages": [{"role": "user", "content": "tidy up"}]}))
    return names["deleted"], _tool_message(done["messages"])


def _evaluated(page: str, path: str) -> Any:
    from inspect_ai import eval as evaluate
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    names = page_of(page, "Inspect AI")
    outputs = [
        ModelOutput.for_tool_call("mockllm/model", "delete_file", {"path": path}, content="Let me look."),
        ModelOutput.from_content("mockllm/model", "done"),
    ]
    for output in outputs:
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)  # else a tokenizer is downloaded
    with tempfile.TemporaryDirectory() as folder:
        model = get_model("mockllm/model", custom_outputs=outputs)
        (log,) = evaluate(names["task"], model=model, log_dir=folder, display="none")
        return names, log, list(log.samples[0].messages)


def of_inspect(page: str, path: str) -> Told:
    names, log, messages = _evaluated(page, path)
    (result,) = [message for message in messages if message.role == "tool"]
    error = f"{result.error.type} {result.error.message}" if result.error else result.text
    return names["deleted"], f"{log.status} {error}"


def of_inspect_terminating(page: str, path: str) -> Told:
    names, log, messages = _evaluated(page.replace("anydepth_gate()", "anydepth_gate(terminate=True)"), path)
    return names["deleted"], f"{log.status} {' '.join(message.role for message in messages)}"


def of_inspect_image(page: str, path: str) -> Told:
    from inspect_ai.model import ChatMessageUser, ContentImage, ContentText
    from inspect_ai.tool import ToolCall, ToolCallView

    approve: Any = page_of(page, "Inspect AI")["anydepth_gate"]()
    history = [ChatMessageUser(content=[ContentText(text="see"), ContentImage(image="data:image/png;base64,AA==")])]
    approval = asyncio.run(approve("", ToolCall("call_1", "delete_file", {"path": path}), ToolCallView(), history))
    return [], f"{approval.decision} {approval.explanation}"


PROGRAMS: dict[str, Callable[[str, str], Told]] = {
    "mcp": of_mcp,
    "openai-agents": of_openai_agents,
    "openai-agents, stop": of_openai_agents_stopping,
    "langchain": of_langchain,
    "langchain, async": of_langchain_async,
    "inspect": of_inspect,
    "inspect, terminate": of_inspect_terminating,
    "inspect, image": of_inspect_image,
}


def main(program: str, page: Path, url: str) -> None:
    for case, (path, suffix) in CASES.items():
        os.environ["ANYDEPTH_URL"] = "http://127.0.0.1:9" if suffix is None else url + suffix
        ran, told = PROGRAMS[program](page.read_text("utf-8"), path)
        sys.stdout.write(json.dumps({"case": case, "ran": ran, "told": told}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
