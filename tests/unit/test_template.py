"""The template layer on tiny tokenizers, one for each habit of real chat templates."""

import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from anydepth.errors import ConfigError, PromptError, TemplateError
from anydepth.templates import published as overrides
from anydepth.templates.header import CONTENT
from anydepth.templates.template import ChatTemplate, Header, Prompt, published

CHATML = """
{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = """
{{- bos_token }}{%- if tools %}{{ '[' + tools[0]['function']['name'] + ']' }}{% endif %}
{{- '<sys>Cutting Knowledge Date: ' + strftime_now('%d %b %Y') + '</sys>' }}
{%- for m in messages %}
{{- '<|header|>' + m['role'] + '<|end_header|>\n\n' + m['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|header|>assistant<|end_header|>\n\n' }}{% endif %}"""
GEMMA = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{{- '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<end>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"""
MISTRAL = """
{{- bos_token }}
{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}
{%- elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% endif %}
{%- endfor %}"""
LLAMA2 = MISTRAL.replace("+ '[/INST]'", "+ ' [/INST]'").replace(
    "{{ m['content'] +", "{{ ' ' + m['content'] | trim + ' ' +"
)
THINK = """
{%- for m in messages %}
{%- if m['role'] == 'assistant' %}{% set text = m['content'].split('</think>')[-1] | trim %}
{{- '<|im_start|>assistant\n' + ('<think>\n\n</think>\n\n' if loop.last else '') + text + '<|im_end|>\n' }}
{%- else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""
OPENED = """
{{- bos_token }}
{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}
{%- else %}{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"""
HARMONY = """
{%- for m in messages %}
{%- if m['role'] == 'assistant' %}
{%- if m['thinking'] %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m['thinking'] + '<|end|>' }}{% endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m['content'] }}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
{%- else %}{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|end_header|>", "<|eot|>", "<turn>", "<end>"]
SPECIAL += [
    "[INST]",
    "[/INST]",
    "<think>",
    "</think>",
    "<|User|>",
    "<|Assistant|>",
    "<|start|>",
    "<|end|>",
    "<|return|>",
]
SPECIAL += ["<|channel|>", "<|message|>", "<|user|>", "<|assistant|>", "<|endoftext|>"]
WORDS = ["assistant", "model", "user", "system", "analysis", "final"]


def make(template: str | dict | None, *, words: list[str] = WORDS, name: str = "") -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that knows `SPECIAL`, `words` and double line breaks, and adds no token by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*alphabet, "ĊĊ"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens(list(words))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIAL
    )
    tokenizer.chat_template = template
    tokenizer.name_or_path = name
    return tokenizer


def text_of(template: ChatTemplate, ids: tuple[int, ...]) -> str:
    return template.tokenizer.decode(ids, skip_special_tokens=False)


def header_text(template: ChatTemplate) -> str:
    return text_of(template, template.header.ids)


def read_text(template: ChatTemplate) -> str:
    return template.header.tokens[template.header.read_index]


# --- the header ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jinja", "header", "read"),
    [
        (CHATML, "<|im_end|>\n<|im_start|>assistant\n", "assistant"),
        (LLAMA3, "<|eot|><|header|>assistant<|end_header|>\n\n", "assistant"),
        (GEMMA, "<end>\n<turn>model\n", "model"),
        (MISTRAL, "</s>[/INST]", "[/INST]"),
        (LLAMA2, " </s> [/INST]", "[/INST]"),
        (THINK, "<|im_end|>\n<|im_start|>assistant\n", "assistant"),
        (OPENED, "</s><|Assistant|><think>\n", "<|Assistant|>"),
        (HARMONY, "<|end|><|start|>assistant", "assistant"),
    ],
    ids=["chatml", "llama3", "gemma", "mistral", "llama2", "think", "opened", "harmony"],
)
def test_header_is_end_of_turn_and_generation_prompt(jinja: str, header: str, read: str) -> None:
    template = ChatTemplate(make(jinja))
    assert header_text(template) == header
    assert read_text(template) == read
    assert template.source == "derived"


def test_template_that_opens_the_turn_only_after_a_user_message() -> None:
    jinja = CHATML.replace("if add_generation_prompt", "if add_generation_prompt and messages[-1]['role'] == 'user'")
    assert header_text(ChatTemplate(make(jinja))) == "<|im_end|>\n<|im_start|>assistant\n"


def test_template_that_refuses_to_go_on_after_an_answer() -> None:
    refusal = "{%- if add_generation_prompt and messages[-1]['role'] != 'user' %}{{ raise_exception('no') }}{% endif %}"
    assert header_text(ChatTemplate(make(refusal + CHATML))) == "<|im_end|>\n<|im_start|>assistant\n"


def test_template_that_ignores_the_generation_prompt_is_left_as_it_is() -> None:
    jinja = CHATML.split("{%- if add_generation_prompt")[0]
    template = ChatTemplate(make(jinja))
    assert header_text(template) == "<|im_end|>\n<|im_start|>assistant\n"
    prompt = template.prompt("hi")
    assert text_of(template, prompt.ids) == "<|im_start|>user\nhi<|im_end|>\n"
    assert template.start_index(prompt, template.header.read_index) is None
    assert text_of(template, template.answer_ids(prompt)) == "<|im_start|>assistant\n"
    prefilled = template.prompt("hi", prefill="Sure")
    assert text_of(template, prefilled.ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nSure"
    assert prefilled.ids[: prefilled.start] == prompt.ids


def test_template_that_writes_eos_instead_of_a_generation_prompt() -> None:
    jinja = """{%- for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}
    {{- '<|assistant|>\n' if add_generation_prompt else eos_token }}"""
    template = ChatTemplate(make(jinja))
    assert header_text(template) == "<|end|>\n<|assistant|>\n"
    assert read_text(template) == "<|assistant|>"


def test_template_with_the_assistant_opener_in_the_users_turn() -> None:
    jinja = """{%- for m in messages %}
    {%- if m['role'] == 'user' %}{{ '<|User|>' + m['content'] + '<|Assistant|>' }}
    {%- else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}
    {%- if add_generation_prompt and messages[-1]['role'] != 'user' %}{{ '<|Assistant|>' }}{% endif %}"""
    assert header_text(ChatTemplate(make(jinja))) == "</s><|Assistant|>"


def test_template_that_ends_a_turn_only_before_the_next_one() -> None:
    jinja = """{{- bos_token }}{%- for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}
    {{- '' if loop.last else '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
    assert header_text(ChatTemplate(make(jinja))) == "<|end|><|assistant|>"


def test_end_of_turn_that_merges_with_the_answer_is_tokenised_by_itself() -> None:
    jinja = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{{ 'assistant:' }}"
    swallowing = [*WORDS, "anydepthanswer\n"]  # a vocabulary in which the answer's last word and the line break are one
    assert header_text(ChatTemplate(make(jinja, words=swallowing))) == "\nassistant:"


def test_header_does_not_depend_on_the_text_around_it() -> None:
    """Tokenising prompt, answer and header apart gives the ids of the whole conversation."""
    template = ChatTemplate(make(CHATML))
    prompt = template.prompt("How?", prefill="Like this.")
    whole = template.tokenizer.apply_chat_template(
        [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Like this."}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert [*prompt.ids, *template.header.ids] == whole


def test_tokens_are_printable() -> None:
    header = ChatTemplate(make(LLAMA3)).header
    assert header.tokens == ("<|eot|>", "<|header|>", "assistant", "<|end_header|>", "\\n\\n")


# --- the read token --------------------------------------------------------------------------------------------------


def test_role_of_several_tokens_is_read_at_its_last() -> None:
    header = ChatTemplate(make(CHATML, words=["assis", "tant"])).header
    assert header.tokens == ("<|im_end|>", "\\n", "<|im_start|>", "assis", "tant", "\\n")
    assert header.read_index == 4
    assert ChatTemplate(make(CHATML, words=["assis", "tant"]), read_token="assistant").header == header


def test_without_a_role_word_the_last_word_before_the_thoughts_is_read() -> None:
    template = ChatTemplate(make(OPENED.replace("<|Assistant|>", "<|end|>")))
    assert header_text(template) == "</s><|end|><think>\n"
    assert read_text(template) == "<|end|>"


@pytest.mark.parametrize(
    ("token", "index"), [(0, 0), ("<|im_end|>", 0), ("\\n", 4), ("\n", 4), ("Ċ", 4), ("<|im_start|>", 2)]
)
def test_read_token_by_index_text_or_vocabulary(token: int | str, index: int) -> None:
    assert ChatTemplate(make(CHATML), read_token=token).header.read_index == index


def test_read_token_in_the_answer_opener_moves_it_into_the_header() -> None:
    template = ChatTemplate(make(HARMONY), read_token="<|message|>")
    assert header_text(template) == "<|end|><|start|>assistant<|channel|>final<|message|>"
    assert template.header.answer_ids == ()
    assert template.header.probe_ids == template.header.ids
    prompt = template.prompt("hi")
    assert template.start_index(prompt, template.header.read_index) is None
    assert template.start_index(prompt, 2) == len(prompt.ids) - 1


@pytest.mark.parametrize("token", ["nothing", "", 9, -1, True, 1.0])
def test_read_token_outside_the_header_is_an_error(token: int | str) -> None:
    with pytest.raises(ConfigError, match=r"assistant|give an index"):
        ChatTemplate(make(CHATML), read_token=token)


def test_header_read_at() -> None:
    header = ChatTemplate(make(CHATML)).header
    assert header.read_at(0).probe_ids == header.ids[:1]
    assert header.probe_ids == header.ids[:4]
    with pytest.raises(ConfigError, match="choose 0 to 4"):
        header.read_at(5)
    with pytest.raises(ConfigError, match="0 tokens"):
        Header((), 0, (), ())


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jinja", [CHATML, LLAMA3, GEMMA, MISTRAL, LLAMA2, THINK, OPENED, HARMONY])
def test_prompt_is_what_apply_chat_template_gives(jinja: str) -> None:
    template = ChatTemplate(make(jinja))
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    want = template.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert template.prompt(messages) == Prompt(tuple(want))
    assert template.prompt("one") == template.prompt(messages[:1])


@pytest.mark.parametrize("jinja", [LLAMA3, GEMMA, MISTRAL, OPENED])
def test_bos_is_there_once(jinja: str) -> None:
    tokenizer = make(jinja)
    assert ChatTemplate(tokenizer).prompt("hi", prefill="yes").ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("jinja", [CHATML, LLAMA3, GEMMA, MISTRAL, LLAMA2, THINK, OPENED, HARMONY])
@pytest.mark.parametrize("prefill", ["Sure", " Sure, \n", "\nSure", "\n\n", "Sure  "])
def test_prefill_is_appended_to_an_unchanged_prompt(jinja: str, prefill: str) -> None:
    template = ChatTemplate(make(jinja))
    bare, given = template.prompt("hi"), template.prompt("hi", prefill=prefill)
    assert given.ids[: given.start] == bare.ids
    assert given.start == len(bare.ids)
    assert text_of(template, given.ids).endswith(prefill)
    assert given == template.prompt([{"role": "user", "content": "hi"}, {"role": "assistant", "content": prefill}])


def test_prefill_reads_as_continue_final_message_where_the_template_keeps_it() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure, here"}]
    for jinja in (CHATML, LLAMA3, GEMMA, MISTRAL, LLAMA2, THINK, HARMONY):
        template = ChatTemplate(make(jinja))
        want = template.tokenizer.apply_chat_template(messages, continue_final_message=True, tokenize=False)
        assert text_of(template, template.prompt(messages).ids) == want


def test_empty_prefills_are_none() -> None:
    template = ChatTemplate(make(CHATML))
    user = {"role": "user", "content": "hi"}
    bare = template.prompt("hi")
    assert bare.prefill == 0
    assert bare.start == len(bare.ids)
    assert template.prompt("hi", prefill="") == bare
    assert template.prompt([user, {"role": "assistant", "content": ""}]) == bare
    assert template.prompt([user, {"role": "assistant", "content": ""}], prefill="x").prefill == 1
    assert template.prompt([user, {"role": "assistant", "content": "x"}], prefill="").prefill == 1


def test_content_parts_and_tools() -> None:
    template = ChatTemplate(make(LLAMA3))
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert template.prompt([{"role": "user", "content": parts}]) == template.prompt("one\ntwo")
    tool = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    assert "[clock]" in text_of(template, template.prompt("hi", tools=[tool]).ids)


def test_assistant_message_with_a_tool_call_needs_no_content() -> None:
    jinja = CHATML.replace("m['content']", "(m['content'] or m['tool_calls'][0]['function']['name'])")
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}
    template = ChatTemplate(make(jinja))
    messages = [{"role": "user", "content": "hi"}, call, {"role": "tool", "content": "noon"}]
    assert "clock" in text_of(template, template.prompt(messages).ids)
    with pytest.raises(PromptError, match="append the tool's result"):
        template.prompt(messages[:2])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages are empty"),
        ((), "messages are empty"),
        ("", "prompt is empty"),
        ("  \n", "prompt is empty"),
        ({"role": "user", "content": "hi"}, "messages are a dict"),
        (b"hi", "messages are a bytes"),
        (None, "messages are a NoneType"),
        (["hi"], "message 0 is 'hi'"),
        ([{"content": "hi"}], "message 0 has the role None"),
        ([{"role": 3, "content": "hi"}], "message 0 has the role 3"),
        ([{"role": "", "content": "hi"}], "message 0 has the role ''"),
        ([{"role": "user"}], "message 0 .role user. has no content"),
        ([{"role": "user", "content": None}], "has no content"),
        ([{"role": "user", "content": 3}], "content of type int"),
        ([{"role": "user", "content": b"hi"}], "content of type bytes"),
        ([{"role": "user", "content": ["hi"]}], "content part 'hi'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "only text parts"),
        ([{"role": "assistant", "content": "hi"}], "put a user message before it"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "thinking": "b"}], "a 'thinking'"),
    ],
)
def test_malformed_messages(messages: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        ChatTemplate(make(CHATML)).prompt(messages)


def test_malformed_prefills() -> None:
    template = ChatTemplate(make(CHATML))
    with pytest.raises(PromptError, match="given twice"):
        template.prompt([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], prefill="c")
    with pytest.raises(PromptError, match="prefill is a list"):
        template.prompt("hi", prefill=["Sure"])


def test_refusals_of_the_template_are_prompt_errors() -> None:
    template = ChatTemplate(make(GEMMA), name="tiny")
    user, system = {"role": "user", "content": "a"}, {"role": "system", "content": "b"}
    with pytest.raises(PromptError, match=r"template of tiny refuses .*'system', 'user'.*System role not supported"):
        template.prompt([system, user])
    with pytest.raises(PromptError, match="Roles must alternate"):
        template.prompt([user, user])


def test_a_role_that_the_template_drops_is_an_error() -> None:
    template = ChatTemplate(make(MISTRAL), name="tiny")
    with pytest.raises(PromptError, match="tiny drops messages of role 'system'"):
        template.prompt([{"role": "system", "content": "be good"}, {"role": "user", "content": "hi"}])
    with pytest.raises(PromptError, match="'human'"):
        template.prompt([{"role": "human", "content": "hi"}])


# --- depth 0 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jinja", [CHATML, LLAMA3, GEMMA, MISTRAL, LLAMA2, THINK, OPENED, HARMONY])
def test_start_index_finds_the_read_token_in_the_prompt(jinja: str) -> None:
    template = ChatTemplate(make(jinja))
    for prompt in (template.prompt("hi"), template.prompt("hi", prefill="Sure")):
        index = template.start_index(prompt, template.header.read_index)
        assert index is not None
        assert prompt.ids[index] == template.header.ids[template.header.read_index]
        assert index < prompt.start


def test_start_index_of_a_token_that_the_prompt_lacks() -> None:
    template = ChatTemplate(make(MISTRAL))
    assert template.start_index(template.prompt("hi"), 0) is None  # a user's turn has no </s>
    assert template.start_index(Prompt(()), 1) is None


def test_where_a_read_stands_at_each_depth() -> None:
    template = ChatTemplate(make(CHATML))
    prompt = template.prompt("hi", prefill="Sure")
    text = (*prompt.ids[: prompt.start], 5, 6, 7, *template.header.ids)  # three tokens of an answer, then the header
    for token in range(CONTENT, len(template.header.ids)):
        place = template.position(prompt, token, 3)
        assert place is not None and text[place] == (7 if token == CONTENT else template.header.ids[token])
        at_start = template.position(prompt, token)
        assert at_start == (
            template.header_start(prompt) - 1 if token == CONTENT else template.start_index(prompt, token)
        )
    assert prompt.ids[template.header_start(prompt)] == template.header.ids[0]


def test_a_prompt_that_lacks_the_header_is_the_text_before_it() -> None:
    template = ChatTemplate(make(MISTRAL))
    prompt = template.prompt("hi")
    assert template.header_start(prompt) == prompt.start
    assert (template.position(prompt, 0), template.position(prompt, CONTENT)) == (None, prompt.start - 1)
    assert template.position(prompt, 0, 2) == prompt.start + 2


@pytest.mark.parametrize("jinja", [CHATML, LLAMA3, GEMMA, MISTRAL, LLAMA2, THINK, OPENED, HARMONY])
def test_an_answer_begins_behind_the_generation_prompt_whatever_it_ends_with(jinja: str) -> None:
    template = ChatTemplate(make(jinja))
    ids, header = template.prompt("hi").ids, template.header.ids
    assert template.turn_begin(ids) == template.turn_begin(list(ids)) == len(ids)
    for end in range(1, template._role + 1):  # the header up to the token before the role: no generation prompt
        assert template.turn_begin((*ids, 65, 66, *header[:end])) == len(ids)
    if read_text(template) in WORDS:  # a word alone opens nothing; a token of its own, such as [/INST], does
        for begin in range(template._role, len(header)):
            assert template.turn_begin((*ids, 65, 66, *header[begin:])) == len(ids)
    assert template.turn_begin((*ids, 65, *header, 66)) == len(ids) + 1 + len(header)
    prompt = template.prompt("hi", prefill="Sure")
    assert len(prompt.ids) - (template.turn_begin(prompt.ids) or 0) == prompt.prefill
    assert template.turn_begin(()) is None and template.turn_begin((65, 66, *header[: template._role])) is None


# --- channels --------------------------------------------------------------------------------------------------------


def test_ordinary_template_has_one_channel() -> None:
    template = ChatTemplate(make(CHATML))
    assert template.channels == ("answer",)
    assert template.channel is None
    assert template.header.answer_ids == ()


@pytest.mark.parametrize(
    ("jinja", "answer", "thoughts"),
    [
        (THINK, "<think>\n\n</think>\n\n", "<think>\nHm"),
        (OPENED, "\n</think>\n\n", "<think>\nHm"),
        (HARMONY, "<|channel|>final<|message|>", "<|channel|>analysis<|message|>Hm"),
    ],
    ids=["think", "opened", "harmony"],
)
def test_both_channels_are_reached(jinja: str, answer: str, thoughts: str) -> None:
    template = ChatTemplate(make(jinja))
    assert template.channels == ("thinking", "answer")
    assert text_of(template, template.header.answer_ids) == answer
    bare = text_of(template, template.prompt("hi").ids)
    assert text_of(template, template.prompt("hi", prefill="Sure").ids) == bare + answer + "Sure"
    thinking = template.prompt("hi", prefill=thoughts)
    assert text_of(template, thinking.ids).endswith(thoughts)
    assert text_of(template, thinking.ids).count(template.channel.think_open) == 1
    assert thinking.ids[: thinking.start] == template.prompt("hi").ids


def test_prefill_that_closes_opened_thoughts_stays_in_them() -> None:
    template = ChatTemplate(make(OPENED))
    prompt = template.prompt("hi", prefill="Hm\n</think>\n\nSure")
    assert text_of(template, prompt.ids).endswith("<|Assistant|><think>\nHm\n</think>\n\nSure")
    assert text_of(template, template.prompt("hi", prefill="<think>\nHm").ids).endswith("<|Assistant|><think>\nHm")


def test_prefill_that_opens_the_answer_itself() -> None:
    template = ChatTemplate(make(HARMONY))
    opened = template.prompt("hi", prefill="<|channel|>final<|message|>Sure")
    assert opened == template.prompt("hi", prefill="Sure")


def test_template_kwargs_reach_the_template() -> None:
    template = ChatTemplate(make(THINK), template_kwargs={"enable_thinking": False})
    assert header_text(template) == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert read_text(template) == "assistant"
    assert template.header.answer_ids == ()
    with pytest.raises(ConfigError, match="'tokenize', which anydepth sets itself"):
        ChatTemplate(make(THINK), template_kwargs={"tokenize": True})


# --- errors of the template ------------------------------------------------------------------------------------------


def test_no_chat_template() -> None:
    with pytest.raises(TemplateError, match=r"of some/base has no chat template and no row .* instruction-tuned"):
        ChatTemplate(make(None, name="some/base"))
    with pytest.raises(TemplateError, match=r"the row .*Ministral.* has no template"):
        ChatTemplate(make(None), name="mistralai/Ministral-8B-Instruct-2410")


@pytest.mark.parametrize(
    ("jinja", "message", "remedy"),
    [
        ("{{ raise_exception('needs a persona') }}", "fails on a plain conversation: needs a persona", "chat_template"),
        ("{{ bos_token }}", "does not write the content of a message of role user", "chat_template"),
        ("{% for m in messages %}{{ m['content'] if m['role'] == 'user' }}{% endfor %}", "role assistant", "a row"),
        ("{% for m in messages %}{{ m['content'] if m['role'] == 'assistant' }}{% endfor %}", "role user", "chat_"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "writes nothing between", "a row of models.toml"),
        ("{% for m in messages %}{{ m['content'] {% endfor %}", "fails on .* broken at line 1: mend it", "chat_"),
    ],
    ids=["raises", "constant", "drops the assistant", "drops the user", "no markup", "syntax"],
)  # fmt: skip
def test_templates_that_say_nothing(jinja: str, message: str, remedy: str) -> None:
    with pytest.raises(TemplateError, match=f"tiny: .*{message}.*{remedy}"):
        ChatTemplate(make(jinja), name="tiny")


# --- rows of models.toml ---------------------------------------------------------------------------------------------

PAPER = {
    "meta-llama/Llama-2-7b-chat-hf": 15,
    "meta-llama/Llama-3.1-8B-Instruct": 15,
    "mistralai/Ministral-8B-Instruct-2410": 14,
    "google/gemma-2-2b-it": 9,
    "google/gemma-2-9b-it": 23,
    "google/gemma-2-27b-it": 44,
    "Qwen/Qwen2.5-7B-Instruct": 19,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 13,
    "openai/gpt-oss-120b": 33,
}


@pytest.mark.parametrize("name", PAPER)
def test_the_models_of_the_paper_are_rows(name: str) -> None:
    row = published(name)
    assert row is not None
    assert row.site == f"{PAPER[name]}.input_layernorm"
    assert row.probe_header in row.header + row.answer
    assert row.probe_header.endswith(row.read_token)
    assert "2510.18081" in row.source


@pytest.mark.parametrize(
    "name",
    [
        "GOOGLE/gemma-2-9B-it",
        "/models/gemma-2-9b-it/",
        "./gemma-2-9b-it",
        "gemma-2-9b-it",
        r"C:\models\gemma-2-9b-it",
        "/root/.cache/huggingface/hub/models--google--gemma-2-9b-it/snapshots/11c9b309",
    ],
)
def test_published_by_hub_id_or_path(name: str) -> None:
    assert published(name).pattern == "google/gemma-2-9b-it"


@pytest.mark.parametrize("name", ["", "someone/gemma-2-9b-it", "google/gemma-2-9b", "/", "google/gemma-2-9b-it-copy"])
def test_other_models_are_not_published(name: str) -> None:
    assert published(name) is None


def test_row_stands_in_for_a_missing_chat_template() -> None:
    tokenizer = make(None)
    template = ChatTemplate(tokenizer, name="google/gemma-2-2b-it")
    assert template.source == "google/gemma-2-2b-it"
    assert header_text(template) == "<end_of_turn>\n<start_of_turn>model\n"
    assert read_text(template) == "model"
    assert text_of(template, template.prompt("hi").ids) == (
        "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"
    )
    with pytest.raises(PromptError, match="No place for the role system"):
        template.prompt([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])


def test_row_used_always_wins_over_the_templates_header() -> None:
    template = ChatTemplate(make(LLAMA2), name="meta-llama/Llama-2-7b-chat-hf")
    assert template.source == "meta-llama/Llama-2-7b-chat-hf"
    assert header_text(template) == " </s><s>[/INST] "
    prompt = template.prompt("hi", prefill="Sure")
    assert text_of(template, prompt.ids) == "<s>[INST]hi [/INST] Sure"
    # The published header ends in a space that the prompt has not: what comes before it is aligned all the same.
    index = template.start_index(prompt, template.header.read_index)
    assert prompt.ids[index] == template.header.ids[template.header.read_index]


def test_row_used_where_nothing_can_be_derived() -> None:
    template = ChatTemplate(make("{% for m in messages %}{{ m['content'] }}{% endfor %}"), name="openai/gpt-oss-120b")
    assert template.source == "openai/gpt-oss-120b"
    assert header_text(template) == "<|end|><|start|>assistant"
    assert text_of(template, template.header.answer_ids) == "<|channel|>final<|message|>"


def test_row_is_not_used_where_the_header_can_be_derived() -> None:
    assert ChatTemplate(make(CHATML), name="Qwen/Qwen2.5-7B-Instruct").source == "derived"


@pytest.fixture
def own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(text: str) -> Path:
        path = tmp_path / f"rows{len(list(tmp_path.iterdir()))}.toml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setenv(overrides.ENVIRONMENT, os.fspath(path))
        return path

    return write


def test_own_rows_come_first(own_rows) -> None:
    own_rows(
        """
        role_words = ["helper"]
        [[model]]
        pattern = "google/gemma-2-*"
        use = "always"
        header = "<|end|><|user|>helper:"
        [[channel]]
        think_open = "(("
        think_close = "))"
        skip = "))"
        """
    )
    template = ChatTemplate(make(CHATML + "{# (( #}"), name="google/gemma-2-2b-it")
    assert template.source == "google/gemma-2-*"
    assert header_text(template) == "<|end|><|user|>helper:"
    assert read_text(template) == "r"
    assert template.channels == ("thinking", "answer")
    assert published("google/gemma-2-2b-it").site is None
    assert published("Qwen/Qwen2.5-7B-Instruct").layer == 19


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[model]", "cannot be read"),
        ("model = 3", r"write each row under a line \[\[model\]\]"),
        ("channel = [1]", r"write each row under a line \[\[channel\]\]"),
        ('[[model]]\npattern = "a"', "incomplete: .*header"),
        ('[[model]]\npattern = "a"\nheader = "b"\nlayr = 3', "unknown key 'layr'"),
        ('[[model]]\npattern = "a"\nheader = "b"\nuse = "never"', "use is 'never'"),
        ('[[model]]\npattern = "a"\nheader = ""', "header is empty"),
        ('[[channel]]\nthink_open = "a"', "incomplete: .*think_close"),
    ],
)
def test_own_rows_that_are_wrong(own_rows, text: str, message: str) -> None:
    own_rows(text)
    with pytest.raises(ConfigError, match=message):
        published("any/model")


def test_own_rows_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(overrides.ENVIRONMENT, os.fspath(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match=r"ANYDEPTH_MODELS is .*none.toml', which cannot be read"):
        published("any/model")


# --- the digest ------------------------------------------------------------------------------------------------------


def test_digest_names_template_variables_and_row() -> None:
    digests = [
        ChatTemplate(make(LLAMA2)).digest,
        ChatTemplate(make(LLAMA2), name="meta-llama/Llama-2-7b-chat-hf").digest,
        ChatTemplate(make(LLAMA2), template_kwargs={"a": 1}).digest,
        ChatTemplate(make(LLAMA2), template_kwargs={"a": 2}).digest,
        ChatTemplate(make(CHATML)).digest,
        ChatTemplate(make({"default": CHATML, "tool_use": LLAMA3})).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    assert digests[4] == ChatTemplate(make(CHATML), name="other", read_token=0).digest


def test_named_templates_are_chosen_by_transformers() -> None:
    template = ChatTemplate(make({"default": CHATML, "tool_use": LLAMA3}))
    assert header_text(template) == "<|im_end|>\n<|im_start|>assistant\n"
    tool = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    assert "[clock]" in text_of(template, template.prompt("hi", tools=[tool]).ids)
