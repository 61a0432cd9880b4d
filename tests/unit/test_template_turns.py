"""Where an answer ends and a question begins, in templates that show it by two questions in a row only."""

import pytest

from anydepth.templates.template import ChatTemplate
from tests.unit.test_template import header_text, make, text_of

# The system prompt ends in a line break, as an answer does, and the prompt begins with one.
_TURNS = """{{- '<|header|>Think.\n' }}
{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] }}
{%- else %}{{ '\n<|assistant|>\n' + m['content'] + ('' if loop.last else '\n<|end|>\n') }}{% endif %}{% endfor %}"""
_PROMPT = "{{- '\n<|assistant|>\n' }}"
PROMPT_IF_ASKED = (
    _TURNS + "{%- if add_generation_prompt and messages[-1]['role'] == 'user' %}" + _PROMPT + "{% endif %}"
)
PROMPT_ALWAYS = _TURNS + "{%- if messages[-1]['role'] == 'user' %}" + _PROMPT + "{% endif %}"
# Turns are set apart by an empty line, which only the prompt does without.
EMPTY_LINES = """{{- 'Think.' }}
{%- for m in messages %}{{ '\n\n' + m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"""
FIRST_PART = """{%- for m in messages %}{{ '<|' + m['role'] + '|>' }}
{%- if m['content'][0]['type'] == 'text' %}{{ m['content'][0]['text'] }}{% endif %}
{%- for call in m['tool_calls'] or [] %}{{ call['function']['name'] }}{% endfor %}{{ '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


@pytest.mark.parametrize(
    ("jinja", "header"),
    [
        (PROMPT_IF_ASKED, "\n<|end|>\n\n<|assistant|>\n"),
        (PROMPT_ALWAYS, "\n<|end|>\n\n<|assistant|>\n"),
        (EMPTY_LINES, "\nassistant:"),
    ],
)
def test_end_of_turn(jinja: str, header: str) -> None:
    assert header_text(ChatTemplate(make(jinja))) == header


@pytest.mark.parametrize("name", ["assistant", "回复"])
def test_role_before_a_wide_colon(name: str) -> None:
    jinja = (
        "{%- for m in messages %}{{ '<|header|>' + m['role'].replace('assistant', NAME) + '：' + m['content'] }}"
        "{{- '<|end|>' }}{%- endfor %}{% if add_generation_prompt %}{{ '<|header|>' + NAME + '：' }}{% endif %}"
    )
    template = ChatTemplate(make(jinja.replace("NAME", repr(name))))
    assert header_text(template) == f"<|end|><|header|>{name}："
    assert text_of(template, template.header.probe_ids) == f"<|end|><|header|>{name}"


def test_a_call_without_words_is_one_empty_part() -> None:
    template = ChatTemplate(make(FIRST_PART))
    call = {"type": "function", "id": "1", "function": {"name": "weather", "arguments": {}}}
    prompt = template.prompt(
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "sun", "tool_call_id": "1"},
        ]
    )
    assert (
        text_of(template, prompt.ids) == "<|user|>hi<|end|><|assistant|>weather<|end|><|tool|>sun<|end|><|assistant|>"
    )
