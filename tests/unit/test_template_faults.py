"""Habits of chat templates that once gave silently wrong Safety Tokens, one small template each."""

from collections.abc import Mapping
from typing import Any

import pytest

from anydepth.errors import PromptError, TemplateError
from anydepth.template import ChatTemplate, Prompt
from tests.unit.test_template import CHATML, header_text, make, read_text, text_of

END_TWICE = """{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}
{%- if not loop.last or add_generation_prompt %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt and messages[-1]['role'] == 'user' %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
PROMPT_ALWAYS = """{%- for m in messages %}
{%- if m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] + '<|return|><|end|>' }}
{%- else %}{{ '<|user|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}{{ '<|assistant|>' }}"""
NO_THOUGHTS_ALWAYS = """{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ m['content'] + '<|header|>' }}
{%- else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}
{%- if think is defined and not think %}{{ '<think>\n\n</think>\n' }}{% endif %}"""
OPENER_ON_PROMPTS = """{%- for m in messages %}
{%- if m['role'] == 'assistant' %}{{ '<|start|>assistant<|message|>' + m['content'] + '<|return|><|end|>' }}
{%- else %}{{ '<|start|>user' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}{{ '<|start|>assistant' }}"""
OPENED_CHANNEL = """{%- for m in messages %}
{%- if m['role'] == 'assistant' %}{{ '<|start|>assistant' }}
{%- if m['reasoning_content'] %}{{ '<|channel|>' + m['reasoning_content'] + '<|end_header|>' }}{% endif %}
{{- '<|message|>' + m['content'] + '<|end|>' }}
{%- else %}{{ '<|start|>user<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|channel|>' }}
{{- '<|end_header|>' if think is defined and not think else '' }}{% endif %}"""
BARE_CLOSE = """{%- for m in messages %}
{%- if m['role'] == 'assistant' %}{{ '<|assistant|>' }}
{{- '<think>' + m['reasoning_content'] if m['reasoning_content'] else '' }}{{ '</think>' + m['content'] + '<|end|>' }}
{%- else %}{{ '<|user|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}"""
LAST_ENDS_IN_EOS = """{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}
{%- if loop.last and m['role'] == 'assistant' %}{{ '<|endoftext|>' }}{% else %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LAST_LACKS_A_LINE_BREAK = """{%- for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}
{%- if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}
{%- if not (loop.last and m['role'] == 'assistant') %}{{ '\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""
EOS_UNLESS_ASKED = """{%- for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}
{%- if m['role'] == 'assistant' %}{{ eos_token if loop.last and not add_generation_prompt else '<|end|>' }}
{%- else %}{{ '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt and messages[-1]['role'] == 'user' %}{{ '<|assistant|>' }}{% endif %}"""
EOS_OF_THE_TEXT = """{%- for m in messages %}
{{- ('<|user|>' if m['role'] == 'user' else '<|assistant|>') + m['content'] }}{% endfor %}
{{- '<|assistant|>' if add_generation_prompt else eos_token }}"""
UNLESS_LAST = """{%- for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}
{{- '' if loop.last else '<|end|>' }}{% endfor %}
{%- if add_generation_prompt and messages[-1]['role'] == 'user' %}{{ '<|assistant|>' }}{% endif %}"""
BUILT_IN_SYSTEM = "{{- '<|header|>system: be good<|end|>' }}" + UNLESS_LAST
ANSWERS_UNLESS_LAST = """{{- '<|header|>be good<|end|>' }}{%- for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}
{{- '' if loop.last and m['role'] == 'assistant' else '<|end|>' }}{% endfor %}
{%- if add_generation_prompt and messages[-1]['role'] == 'user' %}{{ '<|assistant|>' }}{% endif %}"""
SYSTEM_IN_THE_FIRST_TURN = """{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + ('<<SYS>>\nbe good\n<</SYS>>\n\n' if loop.first else '') + m['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"""
COUNTED = """{%- set n = namespace(i=0) %}{%- for m in messages %}
{%- if m['role'] == 'user' %}{% set n.i = n.i + 1 %}{{ 'Round ' ~ n.i ~ '\nuser: ' + m['content'] }}
{%- else %}{{ '\nassistant: ' + m['content'] + ('' if loop.last else '\n') }}{% endif %}{% endfor %}
{%- if add_generation_prompt and messages[-1]['role'] == 'user' %}{{ '\nassistant: ' }}{% endif %}"""
SEPARATED = """{%- for m in messages %}{{ ('' if loop.first else '\n') + m['role'] + ': ' + m['content'] }}{% endfor %}
{%- if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"""
RESPONSE = """{%- for m in messages %}{{ '<|header|>' + m['role'] + '<|end_header|>' }}
{{- ('<response>' if m['role'] == 'assistant' else '') + m['content'] + '<|eot|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|header|>assistant<|end_header|><response>' }}{% endif %}"""
NAMED_END = """{%- for m in messages %}{{ '<|user|>' + m['content'] + '<|end|>' if m['role'] == 'user' else m['content'] + '<|assistant|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|channel|>' }}{% endif %}"""
LOOPS_OVER_TOOLS = "{%- for t in tools %}{{ t['function']['name'] }}{% endfor %}" + CHATML
PARTS = """{%- for m in messages %}{{ '<|' + m['role'] + '|>' }}
{%- for part in m['content'] if part.type == 'text' %}{{ part.text }}{% endfor %}{{ '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
FIRST_PART = PARTS.replace(
    "{%- for part in m['content'] if part.type == 'text' %}{{ part.text }}{% endfor %}", "{{- m['content'][0].text }}"
)
OWN_MARKERS = """{%- for m in messages %}
{%- if m['role'] == 'assistant' %}{{ '<|start|>assistant' }}
{{- '<|channel|>' + m['reasoning_content'] + '<|end|><|start|>assistant' if m['reasoning_content'] else '' }}
{{- '<|message|>' + m['content'] + '<|end|>' }}
{%- else %}{{ '<|start|>user<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
ENDS_WITH_A_USER = (
    "{% if messages[-1]['role'] != 'user' %}{{ raise_exception('Last message must be from user') }}{% endif %}" + CHATML
)
DATED = "{{- strftime_now('%d ') }}" + UNLESS_LAST


@pytest.mark.parametrize(
    ("jinja", "kwargs", "header", "read", "answer"),
    [
        (END_TWICE, {}, "<|im_end|>\n<|im_start|>assistant\n", "assistant", ""),
        (PROMPT_ALWAYS, {}, "<|return|><|end|><|assistant|>", "<|assistant|>", ""),
        (NO_THOUGHTS_ALWAYS, {"think": False}, "</s><|header|><think>\n\n</think>\n", "<|header|>", ""),
        (OPENER_ON_PROMPTS, {}, "<|return|><|end|><|start|>assistant", "assistant", "<|message|>"),
        (OPENED_CHANNEL, {}, "<|end|><|start|>assistant<|channel|>", "assistant", "<|end_header|><|message|>"),
        (
            OPENED_CHANNEL,
            {"think": False},
            "<|end|><|start|>assistant<|channel|><|end_header|>",
            "assistant",
            "<|message|>",
        ),
        (BARE_CLOSE, {}, "<|end|><|assistant|><think>", "<|assistant|>", "</think>"),
        (LAST_ENDS_IN_EOS, {}, "<|im_end|>\n<|im_start|>assistant\n", "assistant", ""),
        (LAST_LACKS_A_LINE_BREAK, {}, "</s>\n<|assistant|>\n", "<|assistant|>", ""),
        (EOS_UNLESS_ASKED, {}, "<|end|><|assistant|>", "<|assistant|>", ""),
        (EOS_OF_THE_TEXT, {}, "<|assistant|>", "<|assistant|>", ""),
        (UNLESS_LAST, {}, "<|end|><|assistant|>", "<|assistant|>", ""),
        (BUILT_IN_SYSTEM, {}, "<|end|><|assistant|>", "<|assistant|>", ""),
        (ANSWERS_UNLESS_LAST, {}, "<|end|><|assistant|>", "<|assistant|>", ""),
        (SYSTEM_IN_THE_FIRST_TURN, {}, " </s> [/INST]", "[/INST]", ""),
        (COUNTED, {}, "\nassistant: ", "assistant", ""),
        (SEPARATED, {}, "\nassistant:", "assistant", ""),
        (RESPONSE, {}, "<|eot|><|header|>assistant<|end_header|><response>", "assistant", ""),
        (NAMED_END, {}, "<|assistant|><|channel|>", "<|channel|>", ""),
        (LOOPS_OVER_TOOLS, {}, "<|im_end|>\n<|im_start|>assistant\n", "assistant", ""),
        (PARTS, {}, "<|end|><|assistant|>", "<|assistant|>", ""),
        (FIRST_PART, {}, "<|end|><|assistant|>", "<|assistant|>", ""),
        (OWN_MARKERS, {}, "<|end|><|start|>assistant", "assistant", "<|message|>"),
        (ENDS_WITH_A_USER, {}, "<|im_end|>\n<|im_start|>assistant\n", "assistant", ""),
        (DATED, {}, "<|end|><|assistant|>", "<|assistant|>", ""),
    ],
)  # fmt: skip
def test_safety_tokens(jinja: str, kwargs: Mapping[str, Any], header: str, read: str, answer: str) -> None:
    template = ChatTemplate(tokenizer_of(jinja), template_kwargs=kwargs)
    assert header_text(template) == header
    assert read_text(template) == read
    assert text_of(template, template.header.answer_ids) == answer
    for messages in ([user("one")], [user("one"), assistant("two"), user("three")]):
        prompt = template.prompt(messages)
        assert prompt == Prompt(tuple(applied(template, messages, **kwargs)))
        index = template.start_index(prompt, template.header.read_index)
        assert index is not None
        assert prompt.ids[index] == template.header.ids[template.header.read_index]


def tokenizer_of(jinja: str) -> Any:
    tokenizer = make(jinja)
    tokenizer.add_tokens(["<response>"])
    return tokenizer


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def applied(template: ChatTemplate, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
    """What Transformers writes, in the form of messages that the template takes."""
    listed = kwargs | ({"tools": []} if template.tokenizer.chat_template == LOOPS_OVER_TOOLS else {})
    if template.tokenizer.chat_template in (PARTS, FIRST_PART):
        messages = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
    return template.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **listed)
