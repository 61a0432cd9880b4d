"""Stored answers under other requests, behind other turns, between other sentences."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.evals.answers.stored import stored
from anydepth.evals.attacks.recombined import crossed, interleaved, others, pieces_of, set_ups, token_ends
from anydepth.evals.context import Context
from tests.conversations import words
from tests.unit.evals import attacking, tables

TEXT = "Mix flour and water. Is it wet?  Wait!\n\n1. Knead it.\n2. Bake it, e.g. at 200.5 degrees.\n\n\nEat."


def row(number: int, label: Any = "benign", sentences: int = 6) -> Conversation:
    """An answer of sentences of three tokens and a full stop, two to a paragraph."""
    said = [f"{words(20 * number + 3 * place, 3)} ." for place in range(sentences)]
    paragraphs = [" ".join(said[place : place + 2]) for place in range(0, sentences, 2)]
    request = ({"role": "user", "content": words(50 + 9 * number, 4)},)
    return Conversation(f"{label}-{number}", request, "\n\n".join(paragraphs), label)


HARMFUL = [row(number, "harmful") for number in range(5, 8)]
BENIGN = [row(number) for number in range(5)]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Context]:
    context = tables.context("adaptive", tmp_path / "run", attacking.write(tmp_path / "data"))
    yield context
    context.close()


def text_of(context: Context, ids: tuple[int, ...]) -> str:
    return context.backend.tokenizer.decode(ids)


def test_pieces_are_sentences_and_paragraphs() -> None:
    assert pieces_of("sentences", TEXT) == [
        "Mix flour and water.",
        "Is it wet?",
        "Wait!",
        "1. Knead it.",
        "2. Bake it, e.g.",
        "at 200.5 degrees.",
        "Eat.",
    ]
    assert pieces_of("paragraphs", TEXT) == [
        "Mix flour and water. Is it wet?  Wait!",
        "1. Knead it.\n2. Bake it, e.g. at 200.5 degrees.",
        "Eat.",
    ]
    assert pieces_of("sentences", " \n ") == []


def test_a_crossed_answer_stands_under_another_request(made: Context) -> None:
    cases = list(crossed(made, [*HARMFUL, *BENIGN], BENIGN, 12))
    assert [case.label for case in cases] == ["harmful"] * 3 + ["benign"] * 5
    requests = {made.prompt(each).ids: each.id for each in BENIGN}
    for case, own in zip(cases, [*HARMFUL, *BENIGN], strict=True):
        assert (case.attack, case.variant) == ("crossed", "harmless request")
        assert case.transcript.token_ids == stored(made, "", own, 12).token_ids
        assert requests[case.transcript.prompt.ids] != own.id
    assert len({case.transcript.prompt.ids for case in cases}) > 1
    assert list(crossed(made, HARMFUL[1:2], BENIGN, 12)) == cases[1:2], "whatever stands beside an answer"


def test_a_set_up_has_two_harmless_exchanges_first(made: Context) -> None:
    cases = list(set_ups(made, [HARMFUL[0], BENIGN[0]], BENIGN, 12))
    assert [(case.label, case.variant) for case in cases] == [
        (label, variant) for label in ("harmful", "benign") for variant in ("own request", "harmless request")
    ]
    harmless = [each.prompt for each in BENIGN]
    for case, own in zip(cases, [HARMFUL[0], HARMFUL[0], BENIGN[0], BENIGN[0]], strict=True):
        text = text_of(made, case.transcript.prompt.ids)
        asked = [each.prompt for each in (*HARMFUL, *BENIGN) if each.prompt in text]
        assert text.count("<|im_start|> user") == 3 and text.count("<|im_start|> assistant") == 3
        last = text.rpartition("<|im_start|> user")[2]
        assert (own.prompt in last) == (case.variant == "own request")
        assert len(asked) == 3, "three different requests"
        assert sum(each in harmless for each in asked) >= 2
        earlier, (host, *before) = text.rpartition("<|im_start|> user")[0], others(made, "set-up", own, BENIGN, 3)
        assert [each.prompt for each in before] == sorted(harmless, key=earlier.find)[-2:], "in both variants the same"
        assert (host.prompt in last) == (case.variant == "harmless request")
        assert case.transcript.token_ids == stored(made, "", own, 12).token_ids


def test_pieces_of_two_answers_stand_in_turn(made: Context) -> None:
    cases = {case.variant: case for case in interleaved(made, HARMFUL[:1], BENIGN, 200)}
    assert list(cases) == [
        f"{kind}, {of} request" for kind in ("sentences", "paragraphs") for of in ("own", "harmless")
    ]
    (other,) = others(made, "interleaved", HARMFUL[0], BENIGN, 1)
    for variant, case in cases.items():
        kind = variant.partition(",")[0]
        pairs = zip(pieces_of(kind, other.response), pieces_of(kind, HARMFUL[0].response), strict=True)
        between = " " if kind == "sentences" else "\n\n"
        text = between.join(piece for pair in pairs for piece in pair)
        wanted = made.prompt(HARMFUL[0], prefill=text)
        assert case.transcript.token_ids == wanted.ids[wanted.start :]
        asked = HARMFUL[0] if variant.endswith("own request") else other
        assert case.transcript.prompt.ids == made.prompt(asked).ids
    marks = cases["sentences, own request"].mixture
    assert marks is not None
    assert marks.harmful == ((False,) * 4 + (True,) * 4) * 6, "three words and a full stop a sentence"
    assert marks.token_ids == cases["sentences, own request"].transcript.token_ids
    assert marks.harmful_before(9) == 4


def test_harmless_twins_are_made_of_two_harmless_answers(made: Context) -> None:
    cases = list(interleaved(made, BENIGN[:2], BENIGN, 20))
    assert [(case.label, case.mixture, len(case.transcript.token_ids)) for case in cases] == [("benign", None, 20)] * 8


def test_a_mixture_that_is_cut_before_the_harm_is_left_out(made: Context) -> None:
    found = [case.variant for case in interleaved(made, HARMFUL[:1], BENIGN, 6)]
    assert found == ["sentences, own request", "sentences, harmless request"]
    assert list(interleaved(made, HARMFUL[:1], BENIGN, 4)) == []


def test_others_have_other_requests_and_too_few_are_an_error(made: Context) -> None:
    same = Conversation("again", BENIGN[0].messages, "w1 w2")
    unanswered = Conversation("none", ({"role": "user", "content": "w9"},))
    found = others(made, "purpose", BENIGN[0], [same, unanswered, *BENIGN], 4)
    assert sorted(each.id for each in found) == [f"benign-{number}" for number in range(1, 5)]
    pool = [same, unanswered, *BENIGN]
    drawn = {tuple(each.id for each in others(made, f"p{n}", BENIGN[0], pool, 2)) for n in range(20)}
    assert len(drawn) > 3, "drawn anew for each purpose"
    says = r"'set-up' needs 3 harmless answers .* 'benign-0': 3 turns need 2 .* there are 1; .* pairs_benign_validation"
    with pytest.raises(ConfigError, match=says):
        list(set_ups(made, BENIGN[:1], BENIGN[:3], 12))


def test_token_ends_count_the_tokens_before_a_place(made: Context) -> None:
    given = Conversation("c", ({"role": "user", "content": "w1"},), "w2 w3 w4 w5")
    assert token_ends(made, given, [2, 5, 11], 3) == [1, 2, 3]
    assert token_ends(made, given, [], 3) == []
