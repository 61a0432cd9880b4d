"""Answers in other shapes say the same."""

import ast
import base64
import json

import pytest

from anydepth.errors import ConfigError
from anydepth.evals.attacks.restyle import MECHANICAL, request_in_style, restyle
from anydepth.evals.attacks.texts import wording

TEXT = (
    "How to bake bread\n\n1. Mix flour, water and salt.\n2. Let the dough rest for an hour, then knead it – gently.\n"
)


def test_base64_and_json_hold_the_whole_answer() -> None:
    assert base64.b64decode(restyle("base64", TEXT)).decode() == TEXT
    found = json.loads(restyle("json", TEXT))
    lines = [line for line in TEXT.splitlines() if line]
    assert [found["title"], *found["steps"]] == lines
    assert json.loads(restyle("json", "")) == {"title": "", "steps": []}


def test_code_holds_a_comment_and_string_literals() -> None:
    fence, title, *steps, end = restyle("code", TEXT).splitlines()
    assert (fence, end, title) == ("```python", "```", "# How to bake bread")
    found = {name: ast.literal_eval(value) for name, _, value in (step.partition(" = ") for step in steps)}
    assert found == {"step_1": TEXT.splitlines()[2], "step_2": TEXT.splitlines()[3]}
    assert restyle("code", "") == "```python\n# \n```"
    quoted = restyle("code", 'a\nsay "hi" \\ bye').splitlines()[2]
    assert ast.literal_eval(quoted.removeprefix("step_1 = ")) == 'say "hi" \\ bye'


def test_comments_and_verse_keep_the_words() -> None:
    comments = restyle("comments", TEXT).splitlines()
    assert all(line.startswith("#") for line in comments)
    assert [line.removeprefix("#").strip() for line in comments] == TEXT.splitlines()
    verse = restyle("verse", TEXT)
    assert verse.lower().split() == TEXT.lower().split()
    assert max(map(len, verse.splitlines())) <= 36
    assert all(line[0] == line[0].upper() for line in verse.splitlines())


def test_every_mechanical_style_can_be_asked_for() -> None:
    assert set(MECHANICAL) < set(wording("styles"))
    for style in wording("styles"):
        assert request_in_style(style, "Say hello.").startswith("Say hello.\n\nWrite all of your answer")


@pytest.mark.parametrize("make", [restyle, request_in_style])
def test_an_unknown_style_is_refused_by_name(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=r"'limerick'.*base64"):
        make("limerick", TEXT)
