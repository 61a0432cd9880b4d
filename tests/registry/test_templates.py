"""Chat templates that others wrote, hundreds of them, against the derivation: right Safety Tokens, or a refusal."""

import hashlib
from functools import cache
from typing import Any

import pytest

from anydepth.errors import PromptError, TemplateError
from anydepth.templates.template import ChatTemplate
from tests.registry import archives, vocabulary
from tests.registry.conversations import CONVERSATIONS, written
from tests.registry.expected import Expected, table

pytestmark = [pytest.mark.registry, pytest.mark.slow]

ANSWER = "anydepthanswer"
SERVED = [entry for entry in table() if not entry.refused]
REFUSED = [entry for entry in table() if entry.refused]


@cache
def fetched(archive: str) -> dict[str, str] | str:
    """Return the templates of an archive by name, or why they cannot be had; asked for once only."""
    found = next(each for each in archives.ARCHIVES if each.name == archive)
    try:
        return archives.templates(found)
    except OSError as error:
        return f"{found.file} cannot be fetched: {error}"


def text_of(entry: Expected) -> str:
    templates = fetched(entry.archive)
    if isinstance(templates, str):
        pytest.skip(templates)
    return templates[entry.template]


def decoded(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def ids_after_an_answer(tokenizer: Any, text: str) -> list[int]:
    answer = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    whole = tokenizer(ANSWER + text, add_special_tokens=False)["input_ids"]
    if whole[: len(answer)] != answer:  # the text would merge with the answer, whose tokens are fixed by then
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return whole[len(answer) :]


def id_of(entry: Expected) -> str:
    return entry.name


@pytest.mark.parametrize("entry", SERVED, ids=id_of)
def test_safety_tokens(entry: Expected) -> None:
    tokenizer = vocabulary.tokenizer_of(text_of(entry))
    header = ChatTemplate(tokenizer, name=entry.name).header
    text = decoded(tokenizer, header.ids)
    if entry.header.startswith("sha256:"):
        assert hashlib.sha256(text.encode()).hexdigest() == entry.header.removeprefix("sha256:")
    else:
        assert list(header.ids) == ids_after_an_answer(tokenizer, entry.header), text
    assert decoded(tokenizer, header.probe_ids).rstrip().endswith(entry.read)  # `:` and a line break may be one token
    assert entry.read not in decoded(tokenizer, header.ids[header.read_index + 1 :])
    assert decoded(tokenizer, header.answer_ids) == entry.answer


@pytest.mark.parametrize("entry", SERVED, ids=id_of)
def test_prompts_are_those_of_apply_chat_template(entry: Expected) -> None:
    tokenizer = vocabulary.tokenizer_of(text_of(entry))
    template = ChatTemplate(tokenizer, name=entry.name)
    for conversation in CONVERSATIONS.values():
        want = written(tokenizer, conversation)
        tools = list(conversation.tools) or None
        if want is None:
            with pytest.raises(PromptError):
                template.prompt(list(conversation.messages), tools=tools)
            continue
        prompt = template.prompt(list(conversation.messages), tools=tools)
        assert list(prompt.ids) == want[1], want[0]
        prefilled = template.prompt(list(conversation.messages), tools=tools, prefill="Sure, ")
        assert prefilled.ids[: prefilled.start] == prompt.ids
        assert decoded(tokenizer, prefilled.ids).endswith("Sure, ")


@pytest.mark.parametrize("entry", REFUSED, ids=id_of)
def test_refusals(entry: Expected) -> None:
    tokenizer = vocabulary.tokenizer_of(text_of(entry))
    with pytest.raises(TemplateError, match=entry.refused):
        ChatTemplate(tokenizer, name=entry.name)


@pytest.mark.parametrize("archive", [archive.name for archive in archives.ARCHIVES])
def test_no_template_is_left_out(archive: str) -> None:
    templates = fetched(archive)
    if isinstance(templates, str):
        pytest.skip(templates)
    listed = {entry.template for entry in table() if entry.archive == archive}
    assert listed <= set(templates)
    elsewhere = {text_of(entry) for entry in table() if entry.archive != archive}
    assert [name for name, text in templates.items() if name not in listed and text not in elsewhere] == []
