"""Answers that are held to a grammar: guarded they are the bare model's, row by row, whatever the windows are."""

import json
from typing import Any

import pytest
import torch

from anydepth import Every, Guard
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.grammar import Grammar, GrammarTokens
from anydepth.errors import ConfigError, UnsupportedModel
from anydepth.testing import ScriptedDetector
from anydepth.types import Answer
from tests import tiny
from tests.contract.contract import backend_of

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Ulm", "Bonn", "Castrop-Rauxel"]},
        "guests": {"type": "integer", "minimum": 1, "maximum": 20},
        "smoking": {"type": "boolean"},
        "name": {"type": "string", "maxLength": 6, "pattern": "^[a-z]*$"},
    },
    "required": ["city", "guests", "smoking", "name"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
ROOM = 120
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 2.0, "top_k": 5}


def spelling(family: str = "Llama", ride: str = "never") -> TransformersBackend:
    return TransformersBackend(tiny.tiny_model(family, tiny.SPELLING), tiny.spelling_tokenizer(), ride=ride)


def check(answer: Answer) -> dict[str, Any]:
    """The object of an answer, which keeps the schema."""
    assert answer.finish_reason == "stop", answer.text
    found = json.loads(answer.text)
    assert list(found) == SCHEMA["required"]
    assert found["city"] in SCHEMA["properties"]["city"]["enum"] and 1 <= found["guests"] <= 20
    assert isinstance(found["guests"], int) and isinstance(found["smoking"], bool)
    assert len(found["name"]) <= 6 and all("a" <= letter <= "z" for letter in found["name"])
    return found


@pytest.mark.parametrize("options", [{"do_sample": False}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("family", "ride"), [("Llama", "never"), ("Llama", "always"), ("Gemma-3", "auto")])
def test_an_unhalted_answer_is_the_bare_models(family, ride, options):
    backend = spelling(family, ride)
    guard = Guard.from_backend(backend, ScriptedDetector({}), schedule=Every(7))
    prompt = guard.template.prompt("book")
    for seed in (1, 2):
        options = {**options, "grammar": backend.grammar(SCHEMA), "max_new_tokens": ROOM, "seed": seed}
        (plain,) = backend.unguarded([prompt], **options)
        answer = guard.generate("book", **options)
        assert answer.token_ids == plain and len(answer.checks) > 5
        check(answer)


def test_rows_of_a_batch_stand_where_they_stand():
    """They are padded to one length, end at other depths, and the halted one does not disturb the others."""
    backend = spelling()

    def scores(row: int, depth: int) -> float:
        return 0.9 if row == 1 and depth >= 14 else 0.1

    guard = Guard.from_backend(backend, ScriptedDetector(scores), schedule=Every(7))
    asked = ["book", "a longer text with a table", "book a table for a party", "book"]
    answers = guard.generate(asked, grammar=SCHEMA, max_new_tokens=ROOM, seed=3, **SAMPLED)
    assert [answer.halted for answer in answers] == [False, True, False, False]
    found = [check(answer) for answer in answers if not answer.halted]
    assert len({json.dumps(each) for each in found}) == 3, "the rows are all the same"
    assert len({answer.generated_tokens for answer in answers}) > 2


def test_a_grammar_in_lark():
    guard = Guard.from_backend(spelling(), ScriptedDetector({}))
    answer = guard.generate("book", grammar='start: ("ja" | "nein") "!"{3}', max_new_tokens=20, do_sample=False)
    assert answer.text in ("ja!!!", "nein!!!") and answer.finish_reason == "stop"


def test_an_answer_that_is_too_short_for_it_ends_for_length():
    guard = Guard.from_backend(spelling(), ScriptedDetector({}))
    answer = guard.generate("book", grammar=SCHEMA, max_new_tokens=8, do_sample=False)
    assert answer.finish_reason == "length" and answer.text == '{"city":'[: len(answer.text)]


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ({"type": "strange"}, "the grammar cannot be used: Invalid type: strange"),
        ({"not": {"type": "string"}}, r'Unimplemented keys: \["not"\]'),
        ('start: "a', "the grammar cannot be used: "),
    ],
)
def test_a_grammar_that_cannot_be_used(grammar, words):
    with pytest.raises(ConfigError, match=words) as caught:
        spelling().grammar(grammar)
    assert "x-guidance" not in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_grammar_does_not_go_with():
    backend = spelling()
    prompts = [backend.template.prompt("book", prefill='{"city"')]
    with pytest.raises(ConfigError, match="from its first token on, and there is a prefill; leave one out"):
        backend.open(prompts, max_new_tokens=5, grammar=SCHEMA)
    prompts, compiled = [backend.template.prompt("book")], backend.grammar(SCHEMA)
    with pytest.raises(ConfigError, match=r"for the end tokens \[2\], not \[5\]; compile it anew"):
        backend.open(prompts, max_new_tokens=5, grammar=compiled, eos_token_id=5)
    backend.model.generation_config.eos_token_id = None
    with pytest.raises(ConfigError, match="a grammar needs a token that ends the turn, and the model has none"):
        backend.grammar(SCHEMA)
    recurrent = backend_of("Mamba-2")
    with pytest.raises(UnsupportedModel, match="grammar looks at earlier tokens, which a purely recurrent model"):
        recurrent.open([recurrent.template.prompt("w1")], max_new_tokens=5, grammar=SCHEMA)


@pytest.mark.parametrize("options", [{"min_new_tokens": 60}, {"suppress_tokens": list(range(8, 264))}])
def test_options_that_leave_nothing_of_it(options):
    guard = Guard.from_backend(spelling(), ScriptedDetector({}))
    with pytest.raises(ConfigError, match="no token is left that the grammar allows"):
        guard.generate("book", grammar='start: "ja"', max_new_tokens=70, do_sample=False, **options)


def test_a_tokenizer_that_the_library_cannot_read():
    with pytest.raises(UnsupportedModel, match="llguidance cannot read the tokenizer: can't determine decoder type"):
        backend_of("Llama").grammar(SCHEMA)


def test_a_tokenizer_that_is_not_a_fast_one():
    with pytest.raises(UnsupportedModel, match="Slow is not a fast tokenizer, which grammars need"):
        GrammarTokens(type("Slow", (), {})(), frozenset({2}), 5)


# -- the constraint by itself ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Grammar:
    return spelling().grammar("start: /[0-9]{2}[a-c]/")


def letters(text: str) -> list[int]:
    return tiny.spelling_tokenizer()(text, add_special_tokens=False)["input_ids"]


def allowed(constraint: Any, *rows: list[int]) -> list[set[int]]:
    """Which tokens may follow each row."""
    scores = constraint(torch.tensor(rows), torch.zeros(len(rows), tiny.SPELLING))
    return [set(torch.nonzero(torch.isfinite(row)).flatten().tolist()) for row in scores]


def test_the_state_follows_from_the_ids(digits):
    one, first, last, end = letters("1")[0], set(letters("0123456789")), set(letters("abc")), 2
    constraint = digits.constraint(2, 1)
    assert allowed(constraint, [7], [7]) == [first, first]
    assert allowed(constraint, [7, one, one], [7, one, one]) == [last, last], "two tokens at once"
    assert allowed(constraint, [7, one], [7, one]) == [first, first], "a token was taken back"
    b, everything = letters("b")[0], set(range(tiny.SPELLING))
    assert allowed(constraint, [7, one, one, b], [7, one, end, 0]) == [{end}, everything], "each row by itself"


def test_a_row_that_has_ended_is_left_alone(digits):
    one, b, end = letters("1")[0], letters("b")[0], 2
    constraint = digits.constraint(2, 0)
    assert allowed(constraint, [one, one, b], [one, one, b]) == [{end}, {end}]
    everything = set(range(tiny.SPELLING))
    assert allowed(constraint, [one, one, b, end], [one, one, b, end]) == [everything] * 2
    assert allowed(constraint, [one, one, b, end, 0], [one, one, b, end, 9]) == [everything] * 2


def test_more_logits_than_tokens(digits):
    scores = digits.constraint(1, 0)(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 400))
    assert set(torch.nonzero(torch.isfinite(scores[0])).flatten().tolist()) == set(letters("0123456789"))


def test_a_token_that_the_grammar_does_not_allow_is_an_error(digits):
    with pytest.raises(ConfigError, match="the grammar cannot be followed"):
        allowed(digits.constraint(1, 0), letters("x"))
