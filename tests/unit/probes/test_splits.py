"""What is selected depends on the content and the seed alone, and what is left out is accounted for."""

import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth.conversations.dataset import Conversation, Label
from anydepth.conversations.splits import (
    LeftOut,
    Text,
    balance,
    copies,
    distinct,
    drop_near_duplicates,
    near,
    permissive,
    split_by_prompt,
)
from anydepth.errors import ConfigError

ANSWER = "First dig a shallow bed, then loosen the soil with a fork, and mix in two buckets of ripe compost before May."


def conversation(
    name: str, prompt: str = "", response: str = "", label: Label | None = "benign", **others: str
) -> Conversation:
    source, licence = others.pop("source", "garden"), others.pop("licence", "MIT")
    messages = ({"role": "user", "content": prompt or name},)
    return Conversation(name, messages, response, label, source, licence, others)


def ids(conversations: list[Conversation]) -> set[str]:
    return {row.id for row in conversations}


rows = st.lists(
    st.tuples(
        st.integers(0, 12), st.sampled_from("ab"), st.sampled_from(["harmful", "benign", None]), st.text(max_size=3)
    ),
    max_size=60,
).map(
    lambda drawn: [
        conversation(str(number), f"prompt {prompt}", response, label, source=source)
        for number, (prompt, source, label, response) in enumerate(drawn)
    ]
)


@given(rows, st.floats(0.05, 0.95), st.integers(0, 3), st.randoms())
def test_a_split_divides_by_prompt_whatever_the_order(
    conversations: list[Conversation], fraction: float, seed: int, order: random.Random
) -> None:
    split = split_by_prompt(conversations, fraction, seed)
    assert {row.prompt_key for row in split.train}.isdisjoint(row.prompt_key for row in split.held_out)
    assert len(split.train) + len(split.held_out) == len(conversations)
    shuffled = order.sample(conversations, len(conversations))
    assert ids(split_by_prompt(shuffled, fraction, seed).held_out) == ids(split.held_out)


def test_a_split_keeps_the_share_of_every_source_and_label() -> None:
    conversations = [
        conversation(f"{source} {label} {number}", label=label, source=source)
        for source, count, label in (("a", 400, "harmful"), ("a", 90, "benign"), ("b", 10, "benign"))
        for number in range(count)
    ]
    held = Counter((row.source, row.label) for row in split_by_prompt(conversations, 0.2, 1).held_out)
    assert held == {("a", "harmful"): 80, ("a", "benign"): 18, ("b", "benign"): 2}
    assert ids(split_by_prompt(conversations, 0.2, 2).held_out) != ids(split_by_prompt(conversations, 0.2, 1).held_out)


def test_sources_of_one_prompt_each_are_held_out_too() -> None:
    conversations = [conversation(str(number), source=f"s{number}") for number in range(50)]
    assert len(split_by_prompt(conversations, 0.2).held_out) == 10


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_that_splits_nothing_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="fraction is"):
        split_by_prompt([], fraction)


@given(rows, st.integers(1, 10), st.randoms())
def test_balance_caps_and_spreads_over_prompts(
    conversations: list[Conversation], cap: int, order: random.Random
) -> None:
    selection = balance(conversations, per_source=cap, seed=3)
    assert selection.dropped + len(selection.kept) == len(conversations)
    for group in {(row.source, row.label) for row in conversations}:
        have = [row for row in conversations if (row.source, row.label) == group]
        kept = Counter(row.prompt_key for row in selection.kept if (row.source, row.label) == group)
        assert kept.total() == min(cap, len(have))
        room = Counter(row.prompt_key for row in have)
        most = max(kept.values())
        assert all(kept[key] >= min(room[key], most - 1) for key in room), "a prompt got two turns before another's one"
    shuffled = order.sample(conversations, len(conversations))
    assert ids(balance(shuffled, per_source=cap, seed=3).kept) == ids(selection.kept)


def test_balance_without_a_cap_keeps_everything_and_refuses_none() -> None:
    conversations = [conversation("a"), conversation("b")]
    assert balance(conversations, per_source=None).kept == conversations
    with pytest.raises(ConfigError, match="per_source is 0"):
        balance(conversations, per_source=0)


def test_only_licences_that_are_known_to_allow_it_are_permissive() -> None:
    selection = permissive(
        [
            conversation("a"),
            conversation("b", licence="cc-by-nc-4.0", source="pond"),
            conversation("c", licence="unknown", source="shed"),
            conversation("d", licence="apache-2.0"),
            conversation("e", licence="MIT", source="safe-rlhf"),
        ]
    )
    assert ids(selection.kept) == {"a", "d"}
    assert selection.left_out == (
        LeftOut("pond", "licence cc-by-nc-4.0 does not allow it", 1),
        LeftOut("safe-rlhf", "licence MIT does not allow it", 1),
        LeftOut("shed", "licence unknown is not known to allow it", 1),
    )
    assert str(selection).startswith("kept 2, left out 3 (pond: 1, licence")


def test_near_duplicates_of_prompts_goals_and_answers_are_dropped() -> None:
    question = "How can I keep the slugs away from my young lettuce plants in spring?"
    train = [
        conversation("same", question.upper()),
        conversation("one word", question.replace("young", "small")),
        conversation("other", "Which roses bloom until the first frost comes?"),
        conversation("goal", "Pretend you are a gnome. " * 9 + question, goal=question),
        conversation("answer", "How do I start a bed?", ANSWER.replace("May.", "May!")),
        conversation("refusal", "What is this?", "I cannot tell."),
    ]
    held_out = [conversation("h", question, "I cannot tell."), conversation("h2", "Beds, please.", ANSWER)]
    selection = drop_near_duplicates(train, held_out)
    assert ids(selection.kept) == {"other", "refusal"}
    assert selection.left_out == (
        LeftOut("garden", "answer nearly in the held-out set", 1),
        LeftOut("garden", "prompt nearly in the held-out set", 3),
    )
    assert drop_near_duplicates(train, []).kept == train
    assert drop_near_duplicates([], held_out).kept == []
    with pytest.raises(ConfigError, match="threshold is 0"):
        drop_near_duplicates(train, held_out, 0)


def jaccard(left: str, right: str) -> float:
    def shingles(text: str) -> set[str]:
        text = f" {text} "
        return {text[at : at + 5] for at in range(max(1, len(text) - 4))}

    return len(shingles(left) & shingles(right)) / len(shingles(left) | shingles(right))


@settings(max_examples=200)
@given(
    st.sets(st.text("abc é", max_size=14), max_size=12),
    st.sets(st.text("abc é", max_size=14), max_size=12),
    st.sampled_from([0.1, 0.5, 0.7, 0.75, 1.0]),
)
def test_near_finds_exactly_what_comparing_all_pairs_finds(left: set[str], right: set[str], threshold: float) -> None:
    expected = {text for text in left if any(jaccard(text, other) >= threshold for other in right)}
    assert near(left, right, threshold) == expected


def test_thousands_against_thousands_take_seconds() -> None:
    choose = random.Random(0)
    words = ["".join(choose.choices("abcdefghijklmnopqrstuvwxyz", k=choose.randint(3, 9))) for _ in range(3000)]
    texts = [" ".join(choose.choices(words, k=60)) for _ in range(4000)]
    started = time.process_time()
    found = near(set(texts[:2000]), {text.replace("a", "e", 1) for text in texts[:100]} | set(texts[2000:]), 0.7)
    assert found == set(texts[:100])
    assert time.process_time() - started < 30


def test_a_copy_counts_once_whatever_its_case_and_punctuation() -> None:
    rows = [
        conversation("first", "How do I plant beans?", "Dig, then sow."),
        conversation("again", "how do I plant  BEANS", "dig - then sow!"),
        conversation("other answer", "How do I plant beans?", "Ask a neighbour."),
        conversation("other question", "How do I plant peas?", "Dig, then sow."),
        conversation("other label", "How do I plant beans?", "Dig, then sow.", label="harmful"),
    ]
    found = distinct(rows)
    assert ids(found.kept) == {"first", "other answer", "other question", "other label"}
    assert found.left_out == (LeftOut("garden", "copies of others", 1),)


def test_a_long_answer_that_is_nearly_another_one_to_nearly_the_same_request_is_a_copy() -> None:
    prompt = "Please tell me in detail how I should prepare a bed for sowing beans in a small garden"
    rows = [
        conversation("first", prompt, ANSWER),
        conversation("nearly", prompt + " now", ANSWER + " ok"),
        conversation("elsewhere", "What did the sign at the gate of the park say about digging?", ANSWER),
        conversation("rewritten", prompt, ANSWER.replace("compost", "manure").replace("fork", "spade")),
    ]
    assert ids(distinct(rows).kept) == {"first", "elsewhere", "rewritten"}
    shorter = [conversation("a", prompt, "Dig a bed and sow."), conversation("b", prompt, "Dig a bed and sow it.")]
    assert len(distinct(shorter).kept) == 2, "short answers are copies only if they are the same"


def test_every_turn_counts() -> None:
    question = {"role": "user", "content": "And then?"}
    one, other = ({"role": "user", "content": "Sow."}, question), ({"role": "user", "content": "Dig."}, question)
    parts = [{"role": "user", "content": [{"type": "text", "text": "And then?"}]}]
    assert copies([Text.of(one, "Wait."), Text.of(other, "Wait."), Text.of(parts, "Wait."), Text.of(one, "wait")]) == {
        3
    }
    assert Text.of(one, "Wait.").key == Text.of(one, "WAIT").key != Text.of(other, "Wait.").key
