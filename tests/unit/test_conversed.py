"""What a detector that reads text is given of a conversation, by every session that has it."""

from anydepth.backends.conversed import Conversed, WrittenText, conversed, written
from anydepth.backends.protocol import CheckPoint
from anydepth.templates.prompt import Prompt
from anydepth.testing import END, ScriptedBackend

ASKED = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"})


def decode(ids: object) -> str:
    return ScriptedBackend(["x"]).decode_text(ids)  # type: ignore[arg-type]


def test_a_prompt_keeps_its_messages_and_loses_its_prefill() -> None:
    prompt = ScriptedBackend(["x"]).template.prompt([*ASKED, {"role": "assistant", "content": "Well"}])
    assert prompt.messages == ASKED and prompt.prefill == 4
    assert (prompt.question.messages, prompt.question.prefill, prompt.question.start) == (ASKED, 0, prompt.start)
    assert conversed(prompt, prompt.ids[prompt.start :], decode) == Conversed(ASKED, "Well")


def test_messages_are_no_part_of_what_a_prompt_equals() -> None:
    assert Prompt((1, 2), 1, ASKED) == Prompt((1, 2), 1)


def test_a_prompt_of_ids_is_one_message_of_the_user() -> None:
    assert conversed(Prompt((*b"go on", END)), (), decode) == Conversed(({"role": "user", "content": "go on"},), "")


def test_a_scripted_session_has_the_answer_up_to_the_depth() -> None:
    backend = ScriptedBackend(["abc"])
    prompt = backend.template.prompt(ASKED, prefill="12")
    session = backend.open([prompt], max_new_tokens=8)
    session.decode(2)
    here, start = session.conversations([CheckPoint(0, 4), CheckPoint(0, 0)])
    assert (here.answer, start.answer) == ("12ab", "") and here.messages == ASKED


def test_padding_behind_a_text_is_not_counted() -> None:
    text = written([97, 98, END, END], END, decode)
    assert (text, text.tokens) == ("ab", 2)
    assert written([], END, decode) == "" and WrittenText("a b", 2).tokens == 2
