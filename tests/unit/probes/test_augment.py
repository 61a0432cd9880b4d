"""Frames and swapped prompts: made by content, and kept together by the prompt's key."""

from dataclasses import replace

import pytest

from anydepth.conversations.augment import first_words, frames, swap, wrap
from anydepth.conversations.dataset import Conversation
from anydepth.conversations.splits import Text, split_by_prompt
from anydepth.errors import ConfigError
from tests.conversations import conversation, conversations


def test_every_frame_has_the_request_once() -> None:
    names = [frame.name for frame in frames()]
    assert len(set(names)) == len(names) > 5
    for frame in frames():
        framed = frame.around("the {request} itself", seed="s")
        assert framed.count("the {request} itself") == 1, frame.name
        assert len(framed) > len("the {request} itself")


def test_noise_depends_on_the_conversation_only() -> None:
    noisy = [frame for frame in frames() if frame.noise]
    assert noisy
    for frame in noisy:
        assert frame.around("r", "one") == frame.around("r", "one") != frame.around("r", "two")


def test_wrapping_keeps_everything_but_the_prompt() -> None:
    plain = conversations(40)
    wrapped = wrap(plain)
    for before, after in zip(plain, wrapped, strict=True):
        assert before.prompt in after.prompt and before.prompt != after.prompt
        assert (after.response, after.label, after.source, after.licence) == (
            before.response,
            before.label,
            before.source,
            before.licence,
        )
        assert after.id == f"{before.id}+wrap" and after.tags["augmented"] == "wrap"
    assert len({each.prompt.replace(old.prompt, "") for each, old in zip(wrapped, plain, strict=True)}) > 5


def test_the_choice_does_not_depend_on_the_order() -> None:
    plain = conversations(12)
    assert {each.id: each.prompt for each in wrap(plain)} == {each.id: each.prompt for each in wrap(plain[::-1])}


def test_earlier_messages_stay_in_a_frame_and_go_with_a_swap() -> None:
    turns = (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
        {"role": "user", "content": "w3"},
    )
    (wrapped,) = wrap([Conversation("m", turns, "w4", "benign")])
    assert wrapped.messages[:3] == turns[:3] and "w3" in wrapped.prompt
    (swapped,) = swap([conversation(1)], [Conversation("m", turns, "w4", "benign")])
    assert swapped.messages == turns


def test_swapping_puts_the_answer_under_another_prompt() -> None:
    answers, prompts = [conversation(n) for n in (1, 3, 5)], [conversation(n) for n in (2, 4)]
    for before, after in zip(answers, swap(answers, prompts), strict=True):
        assert after.prompt in {each.prompt for each in prompts}
        assert (after.response, after.label, after.source) == (before.response, before.label, before.source)
        assert after.tags["augmented"] == "swap"
    with pytest.raises(ConfigError, match="no prompts"):
        swap(answers, [])


def test_a_moved_answer_says_whose_request_is_read() -> None:
    answer, host = conversation(1), conversation(2)
    (found,) = swap([answer], [host])
    assert (found.prompt_key, found.host_key) == (answer.prompt_key, host.prompt_key)
    assert found.tags["host_source"] == host.source
    assert found.tags["host_text"] == Text.of(host.messages, host.response).key
    assert answer.host_key == answer.prompt_key and wrap([answer])[0].host_key == answer.prompt_key


def test_variants_stay_on_the_originals_side_of_a_split() -> None:
    plain = conversations(60)
    everything = [*plain, *wrap(plain), *swap(plain, plain[::2])]
    for before, after in zip(plain, wrap(wrap(plain)), strict=True):
        assert after.prompt_key == before.prompt_key
    split = split_by_prompt(everything, 0.3)
    sides = [{each.id.partition("+")[0] for each in side} for side in (split.train, split.held_out)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_an_answer_is_never_put_under_its_own_prompt() -> None:
    rows = conversations(12)
    for before, after in zip(rows, swap(rows, rows), strict=True):
        assert after.prompt != before.prompt
    again = [replace(row, id=f"{row.id} again", response="w9") for row in rows]
    for before, after in zip(again, swap(again, rows[:6]), strict=True):
        assert after.prompt != before.prompt
    with pytest.raises(ConfigError, match="answer 'c1': every prompt that it could be put under is its own"):
        swap([conversation(1)], [conversation(1), wrap([conversation(1)])[0]])


def test_harmless_answers_go_under_harmful_prompts() -> None:
    answers, prompts = [conversation(n) for n in (2, 4, 6)], [conversation(n) for n in (1, 3)]
    for before, after in zip(answers, swap(answers, prompts), strict=True):
        assert (after.response, after.label, after.source) == (before.response, "benign", before.source)
        assert after.prompt in {each.prompt for each in prompts} and after.prompt_key == before.prompt_key


def test_earlier_exchanges_are_harmless_and_cut() -> None:
    rows = [conversation(n, 60) for n in range(1, 20)]
    answers = [conversation(n) for n in range(21, 40)]
    harmless = {each.prompt: each.response.split() for each in rows if each.label == "benign"}
    found = swap(answers, rows, turns=3)
    for before, after in zip(answers, found, strict=True):
        assert [each["role"] for each in after.messages] == ["user", "assistant", "user", "assistant", "user"]
        assert (after.label, after.response, after.prompt_key) == (before.label, before.response, before.prompt_key)
        asked = [each["content"] for each in after.messages[::2]]
        assert len({*asked, before.prompt}) == 4, "no request occurs twice, and the answer's own does not occur"
        for user, assistant in zip(after.messages[:3:2], after.messages[1::2], strict=True):
            assert assistant["content"].split() == harmless[user["content"]][:40]
    assert [each.messages[-1] for each in found] == [each.messages[-1] for each in swap(answers, rows)]
    assert swap(answers[::-1], rows, turns=3)[::-1] == found


def test_earlier_exchanges_stand_behind_a_system_message() -> None:
    turns = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "w7 w7"})
    hosts = [Conversation("m", turns, "w4", "harmful"), conversation(2), conversation(4)]
    found = [swap([conversation(n)], hosts, turns=2)[0] for n in range(101, 141, 2)]
    under = [each for each in found if each.prompt == "w7 w7"]
    assert under and all(
        [turn["role"] for turn in each.messages] == ["system", "user", "assistant", "user"] for each in under
    )


def test_too_few_harmless_answers_for_the_turns_are_said() -> None:
    with pytest.raises(ConfigError, match="answer 'c2': 3 turns need 2 harmless answers to other prompts, there are 0"):
        swap([conversation(2)], [conversation(1), conversation(3)], turns=3)


def test_the_first_words_keep_their_space() -> None:
    assert first_words("  a\n\nb  c", 2) == "  a\n\nb" and first_words("a", 5) == "a" and first_words(" ", 2) == ""
