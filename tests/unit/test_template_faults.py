"""Habits of chat templates that once gave silently wrong Safety Tokens, one small template each."""

from collections.abc import Mapping
from typing import Any

import pytest

from anydepth.errors import PromptError, TemplateError
from anydepth.templates.template import ChatTemplate, Prompt
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
{%- if loop.last and m['role'] == 'assistant' %}{{ '<|endoftext|>' }}
{%- else %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}
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
ANSWERS_UNLESS_LAST = """{{- '<|header|>be good<|end|>' }}
{%- for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}
{{- '' if loop.last and m['role'] == 'assistant' else '<|end|>' }}{% endfor %}
{%- if add_generation_prompt and messages[-1]['role'] == 'user' %}{{ '<|assistant|>' }}{% endif %}"""
SYSTEM_IN_THE_FIRST_TURN = """{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + ('<<SYS>>\nbe good\n<</SYS>>\n\n' if loop.first else '') }}
{{- m['content'] + ' [/INST]' }}
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
NAMED_END = """{%- for m in messages %}
{{- '<|user|>' + m['content'] + '<|end|>' if m['role'] == 'user' else m['content'] + '<|assistant|>' }}
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


# --- prompts that end otherwise than the ordinary one ----------------------------------------------------------------

MESSAGE_SWITCH = """{%- set n = namespace(t=true) %}{%- for m in messages %}
{%- if '/no' in m['content'] %}{% set n.t = false %}{% endif %}
{{- '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>' + ('\n' if n.t else '</think>') }}{% endif %}"""
NONE_AFTER_TOOLS = """{%- for m in messages %}
{{- ('<|channel|>' if m['role'] == 'tool' else '<|' + m['role'] + '|>') + m['content'] + '<|end|>' }}{% endfor %}
{%- if add_generation_prompt and messages[-1]['role'] != 'tool' %}{{ '<|assistant|><think>\n' }}{% endif %}"""
TOOL = {"role": "tool", "content": "r"}


def test_message_that_switches_thoughts_off() -> None:
    template = ChatTemplate(make(MESSAGE_SWITCH))
    assert text_of(template, template.header.ids) == "<|end|><|assistant|><think>\n"
    prompt = template.prompt("hi /no", prefill="Sure")
    assert text_of(template, prompt.ids) == "<|user|>hi /no<|end|><|assistant|><think></think>Sure"
    assert prompt.prefill == len("Sure")
    bare = template.prompt("hi /no")
    assert template.answer_ids(bare) == ()
    index = template.start_index(bare, template.header.read_index)
    assert index is not None
    assert text_of(template, bare.ids[index:]) == "<|assistant|><think></think>"
    assert template.start_index(bare, 0) == index - 1
    assert template.start_index(bare, 2) == index + 1
    assert template.start_index(bare, 3) is None  # the line break is not there
    assert text_of(template, template.answer_ids(template.prompt("hi"))) == "\n</think>\n\n"


def test_what_a_message_says_is_no_generation_prompt() -> None:
    template = ChatTemplate(make(NONE_AFTER_TOOLS))
    prompt = template.prompt([user("q"), assistant("a"), TOOL], prefill="Sure")
    assert text_of(template, prompt.ids).endswith("<|assistant|>a<|end|><|channel|>r<|end|>Sure")
    assert prompt.prefill == len("Sure")
    assert template.answer_ids(prompt) == ()
    assert template.start_index(prompt, template.header.read_index) is None
    assert text_of(template, template.prompt("q", prefill="Sure").ids).endswith("<think>\n\n</think>\n\nSure")


@pytest.mark.parametrize(
    ("jinja", "prefill", "end"),
    [
        (BARE_CLOSE, "<think>\nHm", "<|assistant|><think>\nHm"),
        (BARE_CLOSE, "<think>Hm", "<|assistant|><think>Hm"),
        (MESSAGE_SWITCH, "<think>\nHm", "<|assistant|><think>\nHm"),
        (MESSAGE_SWITCH, "<think>Hm", "<|assistant|><think>\nHm"),
        (BARE_CLOSE, "Hm</think>Sure", "<|assistant|><think>Hm</think>Sure"),
        (BARE_CLOSE, "Sure", "<|assistant|><think></think>Sure"),
        (OWN_MARKERS, "<|channel|>Hm", "<|start|>assistant<|channel|>Hm"),
        (OWN_MARKERS, "<|message|>Sure", "<|start|>assistant<|message|>Sure"),
        (OWN_MARKERS, "Sure", "<|start|>assistant<|message|>Sure"),
        (OPENED_CHANNEL, "<|channel|>Hm", "<|start|>assistant<|channel|>Hm"),
        (OPENED_CHANNEL, "<|message|>Sure", "<|start|>assistant<|channel|><|end_header|><|message|>Sure"),
        (OPENED_CHANNEL, "Sure", "<|start|>assistant<|channel|><|end_header|><|message|>Sure"),
    ],
)
def test_prefill_in_a_channel(jinja: str, prefill: str, end: str) -> None:
    template = ChatTemplate(make(jinja))
    prompt = template.prompt("hi", prefill=prefill)
    assert text_of(template, prompt.ids).endswith(end)
    assert prompt.ids[: prompt.start] == template.prompt("hi").ids


@pytest.mark.parametrize(
    ("jinja", "think_open", "think_close", "answer_open"),
    [
        (OWN_MARKERS, "<|channel|>", "<|end|>", "<|message|>"),
        (OPENED_CHANNEL, "<|channel|>", "<|end_header|>", "<|message|>"),
        (BARE_CLOSE, "<think>", "</think>", ""),
        (OWN_MARKERS.replace("reasoning_content", "thinking"), "<|channel|>", "<|end|>", "<|message|>"),
        (OWN_MARKERS.replace("'<|channel|>'", "'<|{}|>'.format('channel')"), "<|channel|>", "<|end|>", "<|message|>"),
    ],
)
def test_markers_of_thoughts_are_the_templates_own(
    jinja: str, think_open: str, think_close: str, answer_open: str
) -> None:
    template = ChatTemplate(make(jinja))
    assert template.channels == ("thinking", "answer")
    assert template.channel is not None
    channel = template.channel
    assert (channel.think_open, channel.think_close, channel.answer_open) == (think_open, think_close, answer_open)


# --- messages whose text would be lost -------------------------------------------------------------------------------

FIRST_SYSTEM_ONLY = """{%- if messages[0]['role'] == 'system' %}
{{- '<|header|>' + messages[0]['content'] + '<|eot|>' }}{% endif %}{%- for m in messages %}
{%- if m['role'] in ['user', 'assistant'] %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


@pytest.mark.parametrize(
    ("roles", "lost"),
    [
        (["user", "assistant", "system", "user"], "'system' in the place of message 2"),
        (["system", "system", "user"], "'system' in the place of message 1"),
        (["user", "assistant", "tool"], "'tool' in the place of message 2"),
        (["system", "user", "assistant", "user"], None),
        (["user"], None),
    ],
)
def test_text_that_the_template_drops_is_an_error(roles: list[str], lost: str | None) -> None:
    template = ChatTemplate(make(FIRST_SYSTEM_ONLY))
    messages = [{"role": role, "content": "e"} for role in roles]  # one letter, which is in the markup anyway
    if lost is None:
        assert text_of(template, template.prompt(messages).ids).count("e") >= len(roles)
        return
    for _ in range(2):  # also where it is remembered
        with pytest.raises(PromptError, match=f"drops messages of role {lost}; put its text into another message"):
            template.prompt(messages)


def test_empty_messages_and_words_beside_a_tool_call_are_not_missed() -> None:
    template = ChatTemplate(make(FIRST_SYSTEM_ONLY))
    assert template.prompt([{"role": "tool", "content": " "}, user("hi")]) == template.prompt("hi")
    calls = ChatTemplate(make(CHATML.replace("m['content']", "('call' if m['tool_calls'] else m['content'])")))
    call = {"role": "assistant", "content": "Let me see.", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert "assistant\ncall" in text_of(
        calls, calls.prompt([user("hi"), call, {"role": "tool", "content": "noon"}]).ids
    )


def test_tool_results_that_the_template_reads_as_json_are_looked_for_as_they_are() -> None:
    reads = CHATML.replace(
        "m['content']", "(m['content'] if m['role'] != 'tool' else numbers[m['content']] ~ m['content'])"
    )
    template = ChatTemplate(make(reads), template_kwargs={"numbers": {"noon": "12 "}})
    assert "12 noon" in text_of(template, template.prompt([user("hi"), {"role": "tool", "content": "noon"}]).ids)


def test_a_row_does_not_make_up_for_text_that_is_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    rows = tmp_path / "rows.toml"
    rows.write_text('[[model]]\npattern = "own/model"\nheader = "<|end|><|assistant|>"\n', encoding="utf-8")
    monkeypatch.setenv("ANYDEPTH_MODELS", str(rows))
    with pytest.raises(TemplateError, match="does not write the content of a message of role user"):
        ChatTemplate(make("{{ bos_token }}"), name="own/model")
    template = ChatTemplate(make(PARTS), name="own/model")
    assert text_of(template, template.prompt("hi").ids) == "<|user|>hi<|end|><|assistant|>"


@pytest.mark.parametrize("arguments", [{"city": "Paris"}, '{"city": "Paris"}'])
@pytest.mark.parametrize(
    "written",
    ["m['tool_calls'][0]['function']['arguments'] + ''", "m['tool_calls'][0]['function']['arguments']['city']"],
)
def test_arguments_of_a_tool_call_in_the_form_that_the_template_takes(arguments: Any, written: str) -> None:
    jinja = CHATML.replace("m['content']", f"(m['content'] + ({written} if m['tool_calls'] else ''))")
    call = {"type": "function", "id": "1", "function": {"name": "weather", "arguments": arguments}}
    messages = [
        user("hi"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sun"},
    ]
    template = ChatTemplate(make(jinja.replace(f"{written} if", f"({written}) if")))
    want = '{"city": "Paris"}' if "+ ''" in written else "Paris"
    if "+ ''" not in written and isinstance(arguments, str):
        jinja = jinja.replace(
            "if m['tool_calls']", "if m['tool_calls'] and m['tool_calls'][0]['function']['arguments'] is mapping"
        )
    assert f"assistant\n{want}<|im_end|>" in text_of(template, template.prompt(messages).ids)


# --- what cannot be proved -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        (CHATML + "{{ '<!-- ' + messages[0]['content'] + ' -->' }}", "writes the text of a message again"),
        (
            "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}{{ eos_token }}",
            "asks for an answer with ' </s>'",
        ),
        ("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}", "writes nothing between"),
        (
            "{% for m in messages %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endfor %}",
            "opens an answer as a question",
        ),
        (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_end|><|im_start|>judge' }}{% endif %}",
            "asks for an answer with .*judge.*, but answers stand behind .*assistant: ",
        ),
        (
            "{% for m in messages %}{{ m['role'] ~ ' ' ~ loop.index ~ ': ' + m['content'] + '<|end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant ' ~ (messages | length + 1) ~ ': ' }}{% endif %}",
            "opens the answer to a first question with .*, to a second one with ",
        ),
        (
            "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}"
            "{% for m in messages %}{{ '[INST]' + m['content'] }}{{ '[/INST]' if m['role'] == 'user' }}{% endfor %}",
            "refuses a second question",
        ),
    ],
)
def test_headers_that_cannot_be_proved_are_refused(jinja: str, message: str) -> None:
    with pytest.raises(TemplateError, match=f"tiny: the chat template {message}.*; write a row of models.toml"):
        ChatTemplate(make(jinja), name="tiny")


def test_a_prompt_without_a_place_for_depth_0_is_refused() -> None:
    jinja = """{%- for m in messages %}{{ ('U: ' if m['role'] == 'user' else 'A: ') + m['content'] }}{% endfor %}
    {%- if add_generation_prompt %}{{ 'A: ' }}{% endif %}"""
    assert header_text(ChatTemplate(make(jinja))) == "A: "
    with pytest.raises(TemplateError, match=r"ends with the tokens .*'textA:'.* not found in a prompt; write a row"):
        ChatTemplate(make(jinja, words=["textA:"]))  # a vocabulary in which the message and the prompt are one


def test_a_role_of_other_tokens_in_the_prompt_is_found_by_its_text() -> None:
    jinja = """{%- for m in messages %}{{ (m['role'] | capitalize) + ': ' + m['content'] }}
    {{- eos_token if m['role'] == 'assistant' else '\n\n' }}{% endfor %}
    {%- if add_generation_prompt %}{{ 'Assistant: <think>' }}{% endif %}"""
    template = ChatTemplate(
        make(jinja, words=["\n\nAss"])
    )  # a vocabulary in which the question's end and the role merge
    assert header_text(template) == "</s>Assistant: <think>"
    prompt = template.prompt("hi")
    assert "\n\nAss" in template.tokenizer.convert_ids_to_tokens(list(prompt.ids))
    index = template.start_index(prompt, template.header.read_index)
    assert index is not None
    assert text_of(template, prompt.ids[index:]) == "t: <think>"
    assert template.start_index(prompt, 0) is None
    assert text_of(template, template.answer_ids(prompt)) == "\n</think>\n\n"


def test_a_day_that_changes_between_two_renderings(monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    from transformers.utils import chat_template_utils

    class Clock(datetime.datetime):
        days = 0

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":
            cls.days += 1
            return cls(2026, 1, 1) + datetime.timedelta(days=cls.days)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    assert header_text(ChatTemplate(make(DATED))) == "<|end|><|assistant|>"
    assert Clock.days > 1


# --- messages that say what to do ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jinja", "kwargs", "message"),
    [
        (
            "{{ functions + datetime }}" + CHATML,
            {},
            "'functions' is undefined; it wants the variables functions, datetime: give them in template_kwargs",
        ),
        (
            "{% if effort is defined and effort != 'low' %}{{ raise_exception('effort is ' + effort) }}{% endif %}"
            + CHATML,
            {"effort": "medium", "other": 1},
            "effort is medium; the template_kwargs effort='medium' are the cause, change or drop them",
        ),
        (
            "{{ tools[0]['function']['name'] + '' }}" + CHATML,
            {},
            "writes no prompt without tools, set tokenizer.chat_template",
        ),
    ],
)
def test_templates_that_want_something(jinja: str, kwargs: Mapping[str, Any], message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(make(jinja), template_kwargs=kwargs)


def test_prompts_that_are_refused_name_the_cause() -> None:
    named = "{% if tools %}{{ tools[0]['function']['name'] + '' }}{% endif %}" + CHATML
    template = ChatTemplate(make(named), name="tiny")
    unreadable = {"type": "function", "function": {"parameters": {}}}
    with pytest.raises(
        PromptError, match=r"template of tiny refuses the tools: .* change the tools, or leave them out"
    ):
        template.prompt("hi", tools=[unreadable])
    calls = ChatTemplate(
        make(
            CHATML.replace(
                "m['content']", "(m['content'] + (m['tool_calls'][0]['id'] + '' if m['tool_calls'] else ''))"
            )
        )
    )
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(PromptError, match=r"refuses the tool calls: .*id.*change them"):
        calls.prompt([user("hi"), call, {"role": "tool", "content": "noon"}])
    strict = (
        "{% if strict is defined and messages | length > 1 %}{{ raise_exception('one message') }}{% endif %}" + CHATML
    )
    with pytest.raises(TemplateError, match="one message; the template_kwargs strict=True are the cause"):
        ChatTemplate(make(strict), template_kwargs={"strict": True})
    tools = "{% if strict is defined and messages | length > 4 %}{{ raise_exception('too many') }}{% endif %}" + CHATML
    with pytest.raises(
        PromptError, match="refuses the messages: too many; the template_kwargs strict=True are the cause"
    ):
        ChatTemplate(make(tools), template_kwargs={"strict": True}).prompt(
            [user("a"), assistant("b")] * 2 + [user("c")]
        )
