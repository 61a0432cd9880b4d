"""Recipes: what is wrong with one is said in full, and what is held out never trains, not even through a copy."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anydepth.conversations.augment import frames
from anydepth.errors import ConfigError
from anydepth.probes.recipe.choices import is_crossed
from anydepth.probes.recipe.pairs import Pair, half
from anydepth.probes.recipe.recipe import (
    TRAIN,
    Gathered,
    RecipePart,
    gather,
    held_out_of,
    read_recipe,
    recipe_for,
    recipe_from,
    training_sources,
)
from anydepth.schedule import Every, Listed

TOPICS = ("apple", "bread", "cloud", "dance", "eagle", "flute", "grape", "horse")
MORE = ("igloo", "jelly", "kite", "lemon", "mango", "north", "ocean", "piano")


def row(number: int, **facts: Any) -> dict[str, Any]:
    """A row whose prompt is unlike that of any other number."""
    one, two, three = TOPICS[number % 8], MORE[number // 8 % 8], TOPICS[(7 * number + 3) % 8]
    return {
        "id": f"r{number}",
        "prompt": f"{one} {number * 7919} {two} {number * 104729} {three}?",
        "response": f"{three} {number * 15485863} {one}",
        "label": "harmful" if number % 2 else "benign",
        "source": f"s{number % 2}",
        "licence": "MIT",
        **facts,
    }


def table(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in rows))
    return str(path)


def gathered(*parts: dict[str, Any], **options: Any) -> dict[str, Gathered]:
    return {each.part.name: each for each in gather(recipe_from({"part": list(parts)}, "test"), **options)}


def ids(found: Gathered) -> list[str]:
    return [each.id for each in found.conversations]


# -- reading -----------------------------------------------------------------------------------------------------------


def test_the_shipped_recipe_can_be_read() -> None:
    recipe = read_recipe()
    assert recipe.source == "default" and any(part.split != TRAIN for part in recipe.parts)
    assert recipe.choose["pairs"] and recipe.calibrate["benign"]


def test_a_recipe_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(
        '[[part]]\nname = "a"\ndata = "x.jsonl"\ndepths = [4, 8]\nlimit = 3\n'
        '[[part]]\nname = "b"\ndata = ["y.jsonl", "z"]\nsplit = "v"\n'
        "[write]\ndo_sample = true\n[fit]\nstrength = [0.1, 1.0]\n"
    )
    recipe = read_recipe(file)
    assert recipe.parts == (
        RecipePart("a", data=("x.jsonl",), depths=(4, 8), limit=3),
        RecipePart("b", data=("y.jsonl", "z"), split="v"),
    )
    assert recipe.write == {"do_sample": True} and recipe.fit == {"strength": [0.1, 1.0]} and recipe.measure == {}
    assert recipe.source == str(file)
    assert [part.schedule for part in recipe.parts] == [Listed((4, 8)), Every()]


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b'\xef\xbb\xbf[[part]]\r\nname = "a"\r\ndata = "x"\r\n')
    assert [part.name for part in read_recipe(tmp_path / "r.toml").parts] == ["a"]


def test_a_recipe_that_cannot_be_read_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no recipe at .*none\.toml"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[[part\n")
    with pytest.raises(ConfigError, match=r"bad\.toml cannot be read"):
        read_recipe(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes\.toml cannot be read"):
        read_recipe(tmp_path / "bytes.toml")


ONE = {"name": "a", "data": "x"}


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"lmit": 3}, "recipe r.toml, part 'a' has 'lmit'; a part has name, data, like, hold_out"),
        ({"name": ""}, "recipe r.toml: a part has the name ''; give every part a name"),
        ({"name": 3}, "a part has the name 3"),
        ({"augment": "swop"}, "part 'a': augment is 'swop'; it must be wrap, swap or splice"),
        ({"like": "b"}, "part 'a': give either `data` or `like`"),
        ({"data": []}, "part 'a': give either `data` or `like`"),
        ({"augment": "swap"}, "part 'a': `under` names the parts whose prompts `swap` and `splice` use; give both"),
        ({"under": "a"}, "part 'a': `under` names"),
        ({"first_depth": -1}, "part 'a': first_depth is -1; it must be a whole number of at least 0"),
        ({"weight": 0}, "part 'a': weight is 0; it must be a number above 0"),
        ({"weight": True}, "part 'a': weight is True; it must be"),
        ({"turns": 0}, "part 'a': turns is 0; it must be a whole number of at least 1"),
        ({"turns": 2}, "part 'a': turns is given; it goes with augment = \"swap\" only"),
        ({"between": True}, "part 'a': between is given; it goes with augment = \"splice\" only"),
        ({"words": [75, 15]}, "part 'a': words is [75, 15]; it must be the least and the largest number of words"),
        ({"words": 15}, "part 'a': words is 15; it must be the least"),
        ({"grace": -1}, "part 'a': grace is -1"),
        ({"augment": "splice"}, "part 'a': `under` names the parts"),
        ({"augment": "splice", "under": "a", "written": True}, "the model cannot write spliced answers"),
        ({"limit": "many"}, "recipe r.toml, part 'a': limit is 'many'; it must be a whole number of at least 1"),
        ({"limit": 0}, "part 'a': limit is 0; it must be"),
        ({"longest": 1.5}, "part 'a': longest is 1.5; it must be"),
        ({"longest_prompt": True}, "part 'a': longest_prompt is True"),
        ({"request": ""}, "part 'a': request is ''; it must be the name of a column"),
        ({"request": ["goal"]}, "part 'a': request is ['goal']; it must be the name of a column"),
        ({"label": "bad"}, "part 'a': label is 'bad'; it must be harmful or benign"),
        ({"labelled": "safe"}, "part 'a': labelled is 'safe'; it must be harmful or benign"),
        ({"written": "yes"}, "part 'a': written is 'yes'; it must be true or false"),
        ({"drop_refusals": 1}, "part 'a': drop_refusals is 1"),
        ({"hold_out": 1}, "part 'a': hold_out is 1; it must be a share from 0 to below 1"),
        ({"hold_out": "0.2"}, "part 'a': hold_out is '0.2'"),
        ({"depths": ["4"]}, "part 'a': depths is ['4']; it must be a list of whole numbers"),
        ({"depths": 25}, "part 'a': depths is 25"),
        ({"sources": [1]}, "part 'a': sources is [1]; it must be a text or a list of texts"),
        ({"split": ""}, "part 'a': split is ''; it must be train or the name"),
        ({"seed": "x"}, "part 'a': seed is 'x'"),
    ],
)
def test_a_wrong_part_is_named_with_key_value_and_remedy(part: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe_from({"part": [{**ONE, **part}]}, "r.toml")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({}, "recipe r has no [[part]] to train on"),
        ({"part": [{**ONE, "split": "v"}]}, "recipe r has no [[part]] to train on; give one without `split`"),
        ({"part": [ONE], "fits": {}}, "recipe r has 'fits'; a recipe has [[part]], [calibrate], [choose]"),
        ({"part": ONE}, "begin each part with [[part]]"),
        ({"part": "x"}, "begin each part with [[part]]"),
        ({"part": [ONE], "fit": 3}, "recipe r: fit is 3; write it as a table, [fit]"),
        ({"part": [ONE, ONE]}, "two parts called 'a'; give each its own name"),
        ({"part": [ONE, {"name": "b", "like": "c"}]}, "part 'b': there is no part 'c' to take from"),
        ({"part": [{"name": "b", "like": "a"}, ONE]}, "part 'b' is like 'a', which must come before it"),
        (
            {"part": [ONE, {"name": "b", "data": "y", "augment": "swap", "under": ["c"]}]},
            "part 'b': there is no part 'c'",
        ),
        (
            {
                "part": [
                    ONE,
                    {"name": "v", "data": "z", "split": "v"},
                    {"name": "b", "data": "y", "augment": "swap", "under": ["v"]},
                ]
            },
            "part 'b': under names 'v', which is held out; name training parts",
        ),
        (
            {"part": [ONE, {"name": "b", "data": "y", "split": "v", "augment": "swap", "under": ["a"]}]},
            "part 'b': under names 'a', which is trained on; name held-out parts",
        ),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(record: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe_from(record, "r")
    assert says in str(error.value)


HARMLESS = {"name": "h", "data": "h", "split": "h"}
SIDES = {
    "x": {"name": "x", "data": "x", "split": "x", "augment": "swap", "under": "h"},
    "y": {"name": "y", "data": "y", "split": "y", "augment": "splice", "under": "h"},
    "plain": {"name": "plain", "data": "z", "split": "z"},
    "beside": {"name": "beside", "data": "z", "split": "x"},
    "other": {"name": "other", "data": "o", "split": "h"},
}


@pytest.mark.parametrize(
    ("parts", "harmful", "benign", "crossed"),
    [
        (["x", "y"], ["x"], ["y"], True),
        (["x"], ["x"], ["h"], True),
        (["x", "plain"], ["x"], ["z"], False),
        (["x", "plain"], ["x", "z"], ["h"], False),
        (["x", "beside"], ["x"], ["h"], False),
        (["x", "other"], ["x"], ["h"], False),
        (["x", "y"], ["h"], ["y"], True),
        (["plain"], ["z"], ["h"], False),
    ],
)
def test_a_pair_is_crossed_only_if_its_requests_say_nothing(
    parts: list[str], harmful: list[str], benign: list[str], crossed: bool
) -> None:
    recipe = recipe_from({"part": [ONE, HARMLESS, *(SIDES[name] for name in parts)]}, "r")
    assert is_crossed(Pair("p", tuple(harmful), tuple(benign)), recipe) == crossed


# -- gathering ---------------------------------------------------------------------------------------------------------


def test_a_part_keeps_what_its_conditions_say(tmp_path: Path) -> None:
    data = table(
        tmp_path / "t.jsonl",
        [
            row(0, source="good-a"),
            row(1, source="good-b"),
            row(2, source="bad"),
            row(3, source="good-a", prompt="a prompt of rather more words than that"),
            row(4, source="good-a", response=""),
            row(5, source="good-a", response="I'm sorry, but I can't help with that."),
        ],
    )
    found = gathered(
        {"name": "a", "data": data, "sources": "good-*", "longest_prompt": 6, "drop_refusals": True, "limit": 5}
    )["a"]
    assert ids(found) == ["r0", "r1"]
    assert found.left_out == "1 answers that begin with a refusal"
    assert ids(gathered({"name": "a", "data": data, "label": "harmful"})["a"]) == ["r1", "r3", "r5"]


def test_nothing_left_out_is_not_mentioned(tmp_path: Path) -> None:
    data = table(tmp_path / "t.jsonl", [row(n) for n in range(4)])
    assert gathered({"name": "a", "data": data, "drop_refusals": True})["a"].left_out == ""


def test_a_limit_counts_a_source_and_label_and_has_a_seed(tmp_path: Path) -> None:
    data = table(tmp_path / "t.jsonl", [row(n) for n in range(30)])
    found = {seed: ids(gathered({"name": "a", "data": data, "limit": 4, "seed": seed})["a"]) for seed in (0, 1)}
    assert all(len(each) == 8 for each in found.values()) and found[0] != found[1]
    assert found[0] == ids(gathered({"name": "a", "data": data, "limit": 4})["a"])


def test_a_part_without_conversations_is_refused_with_what_it_asked_for(tmp_path: Path) -> None:
    data = table(tmp_path / "t.jsonl", [row(0)])
    with pytest.raises(ConfigError, match=r"part 'a' is empty: nothing of .*t\.jsonl passes its conditions"):
        gathered({"name": "a", "data": data, "label": "harmful"})


def test_several_data_are_read_once_each_and_put_together(tmp_path: Path) -> None:
    one = table(tmp_path / "one.jsonl", [row(0)])
    two = table(tmp_path / "two.jsonl", [row(1)])
    assert ids(gathered({"name": "a", "data": [one, two]})["a"]) == ["r0", "r1"]
    table(tmp_path / "tables.jsonl", [row(2)])
    assert ids(gathered({"name": "a", "data": ["tables"]}, data=tmp_path)["a"]) == ["r2"]


def test_answers_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [row(0), row(1, label=None), row(2, label=None)]
    found = gathered({"name": "a", "data": table(tmp_path / "a.jsonl", rows)})
    assert ids(found["a"]) == ["r0"] and found["a"].left_out == "2 that are without a label"
    labelled = gathered({"name": "a", "data": str(tmp_path / "a.jsonl"), "labelled": "benign"})
    assert ids(labelled["a"]) == ["r0", "r1", "r2"]
    with pytest.raises(ConfigError, match=r"part 'a' is empty: .*left out: 2 that are without a label"):
        gathered({"name": "a", "data": table(tmp_path / "b.jsonl", rows[1:])})


def test_a_copy_in_a_held_out_set_counts_once(tmp_path: Path) -> None:
    rows = [row(n) for n in range(20)]
    again = [{**row(n), "id": f"again{n}", "response": row(n)["response"].upper() + "!"} for n in range(20)]
    found = gathered(
        {"name": "a", "data": table(tmp_path / "a.jsonl", [row(n) for n in range(40, 50)])},
        {"name": "own", "data": table(tmp_path / "own.jsonl", [*rows, *again]), "hold_out": 0.5},
        {"name": "v", "data": table(tmp_path / "v.jsonl", [row(n) for n in range(60, 66)]), "split": "held"},
        {"name": "w", "data": table(tmp_path / "w.jsonl", [row(n) for n in range(64, 70)]), "split": "held"},
    )
    assert len(found["own"].conversations) == 20 and len(found["own held out"].conversations) == 10
    assert found["own held out"].left_out == "10 that are copies of others"
    assert ids(found["w"]) == ["r66", "r67", "r68", "r69"]
    assert found["w"].left_out == "2 that are copies of others" and found["v"].left_out == ""


def test_an_answer_with_both_labels_is_left_out(tmp_path: Path) -> None:
    found = gathered(
        {
            "name": "a",
            "data": [
                table(tmp_path / "a.jsonl", [row(0), row(1)]),
                table(tmp_path / "b.jsonl", [row(1, id="again", label="benign")]),
            ],
        },
        {"name": "v", "data": table(tmp_path / "v.jsonl", [row(9)]), "split": "v"},
    )
    assert ids(found["a"]) == ["r0"] and found["a"].left_out == "2 that are labelled both harmful and benign"


def test_near_duplicates_of_held_out_prompts_and_answers_leave_training(tmp_path: Path) -> None:
    answer = (
        "a long answer, word for word, that somebody copied from one table into another one and forgot about it " * 2
    )
    validation = [
        row(100, prompt="How do I get the red wine out of my grandmother's white tablecloth?"),
        row(101, response=answer),
    ]
    train = [
        row(0),
        row(1, prompt="how do i get the red wine out of my  grandmother's white tablecloth"),
        row(2, prompt="How do I get the red wine out of my grandmother's white table-cloth, please?"),
        row(3, response=answer),
        row(4),
    ]
    found = gathered(
        {"name": "a", "data": table(tmp_path / "t.jsonl", train)},
        {"name": "v", "data": table(tmp_path / "v.jsonl", validation), "split": "v"},
    )
    assert ids(found["a"]) == ["r0", "r4"] and ids(found["v"]) == ["r100", "r101"]
    assert found["a"].left_out == "3 that are nearly in the held-out sets"
    with pytest.raises(ConfigError, match="part 'a' is empty; left out of it: 3 that are nearly in the held-out sets"):
        gathered(
            {"name": "a", "data": table(tmp_path / "t.jsonl", train[1:4])},
            {"name": "v", "data": table(tmp_path / "v.jsonl", validation), "split": "v"},
        )


def test_what_a_limit_leaves_out_of_a_held_out_set_does_not_train_either(tmp_path: Path) -> None:
    rows = [row(n) for n in range(8)]
    found = gathered(
        {"name": "a", "data": table(tmp_path / "t.jsonl", [*rows, *(row(n) for n in range(20, 30))])},
        {"name": "v", "data": table(tmp_path / "v.jsonl", rows), "split": "v", "limit": 1},
    )
    assert len(ids(found["v"])) == 2 and not {f"r{n}" for n in range(8)} & set(ids(found["a"]))


def test_held_out_prompts_never_train_not_even_wrapped_or_from_another_part(tmp_path: Path) -> None:
    rows = [row(n) for n in range(80)]
    data = table(tmp_path / "t.jsonl", [*rows, *({**row(n), "id": f"second{n}", "response": "w w"} for n in range(80))])
    found = gathered(
        {"name": "own", "data": data, "hold_out": 0.25, "depths": [4], "longest": 9},
        {"name": "wrapped", "like": "own", "augment": "wrap", "depths": [8]},
        {"name": "again", "data": data},
        {"name": "under others", "like": "own", "label": "harmful", "augment": "swap", "under": ["again"]},
    )
    apart = found.pop(held_out_of("own"))
    keys = {each.prompt_key for each in apart.conversations}
    prompts = {each.prompt for each in apart.conversations}
    assert 18 <= len(keys) <= 22 and len(apart.conversations) == 2 * len(keys), "both answers to a prompt go together"
    for each in found.values():
        assert each.part.split == TRAIN and each.conversations
        assert not keys & {row.prompt_key for row in each.conversations}
        assert not any(prompt in row.prompt for row in each.conversations for prompt in prompts)
    assert apart.part.split == apart.part.name == "own held out"
    assert apart.part.schedule == Every() and apart.part.longest is None, "held-out answers are read as a guard would"
    assert found["wrapped"].part.schedule == Listed((8,)) and len(found["wrapped"].conversations) == len(
        found["own"].conversations
    )


def test_a_request_column_puts_the_answers_under_it_and_nothing_else(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "be brief"},
        *({"role": role, "content": f"w{n}"} for n, role in enumerate(("user", "assistant", "user"))),
    ]
    asked = [row(n, goal=f"{MORE[n // 2]} {n // 2}") for n in range(8)]
    asked[3] |= {"messages": turns, "prompt": None}
    other = row(9, source="other")  # has no such column, and the part does not take it
    data = table(tmp_path / "t.jsonl", [*asked, other])
    found = gathered(
        {"name": "own", "data": data},
        {"name": "plain", "like": "own", "sources": ["s?"], "request": "goal", "longest_prompt": 2},
    )
    before = {each.id: each for each in found["own"].conversations}
    assert len(before) == 9 and len(before["r3"].messages) == 4
    plain = found["plain"].conversations
    assert ids(found["plain"]) == [f"r{n}" for n in range(8)]
    for number, each in enumerate(plain):
        assert each.messages == ({"role": "user", "content": f"{MORE[number // 2]} {number // 2}"},)
        assert replace(each, messages=before[each.id].messages) == before[each.id], "all else stays"
        assert each.prompt_key == each.host_key == plain[number ^ 1].prompt_key != before[each.id].prompt_key


def test_a_conversation_without_the_request_column_is_named(tmp_path: Path) -> None:
    data = table(tmp_path / "t.jsonl", [row(1, goal="w1"), row(2, goal=""), row(3)])
    says = r"part 'plain': conversation 'r2' of s0 has no column 'goal' .* leave `request` out, or name a column"
    with pytest.raises(ConfigError, match=says):
        gathered({"name": "plain", "data": data, "request": "goal"})
    with pytest.raises(ConfigError, match="conversation 'r3' of s1 has no column 'goal'"):
        gathered({"name": "plain", "data": data, "request": "goal", "label": "harmful"})


def test_spliced_answers_are_put_behind_harmless_ones_of_other_parts(tmp_path: Path) -> None:
    long = {"response": " ".join(["one two three four five"] * 8)}
    data = table(tmp_path / "a.jsonl", [row(n) for n in range(20)])
    hosts = table(tmp_path / "h.jsonl", [row(n, **long) for n in range(40, 80, 2)])
    found = gathered(
        {"name": "own", "data": data},
        {"name": "harmless", "data": hosts},
        {"name": "spliced", "like": "own", "augment": "splice", "under": "harmless", "words": [5, 9], "between": True},
        {"name": "two turns", "like": "own", "augment": "swap", "under": "harmless", "turns": 2},
    )
    prompts = {each.prompt for each in found["harmless"].conversations}
    by_id = {each.id: each for each in found["own"].conversations}
    assert len(found["spliced"].conversations) == 20
    for each in found["spliced"].conversations:
        assert each.stretch is not None and each.prompt in prompts
        begin, end = each.stretch
        assert 5 <= len(each.response[:begin].split()) <= 9 and each.response[end:].split()
        assert each.response[begin:end] == by_id[each.id.removesuffix("+splice")].response
    assert {len(each.messages) for each in found["two turns"].conversations} == {3}


def test_held_out_answers_are_moved_within_their_half_of_the_prompts(tmp_path: Path) -> None:
    long = {"response": " ".join(["one two three four five"] * 8)}
    data = table(tmp_path / "a.jsonl", [row(n) for n in range(40)])
    hosts = table(tmp_path / "h.jsonl", [row(n, **long) for n in range(60, 120, 2)])
    apart = [
        {"name": "harmless", "data": hosts, "split": "h"},
        {"name": "spliced", "data": data, "split": "x", "augment": "splice", "under": "harmless"},
        {"name": "swapped", "data": data, "split": "y", "augment": "swap", "under": "harmless", "turns": 3},
    ]
    training = {"name": "own", "data": table(tmp_path / "t.jsonl", [row(n) for n in range(200, 204)])}
    found = gathered(training, *apart)
    keys = {each.prompt: each for each in found["harmless"].conversations}
    for name in ("spliced", "swapped"):
        rows = found[name].conversations
        assert len(rows) == 40 and [each.id.partition("+")[0] for each in rows] == [f"r{n}" for n in range(40)]
        own, host = (half(each, 0).tolist() for each in ([r.prompt_key for r in rows], [r.host_key for r in rows]))
        assert own == host and 5 < sum(own) < 35
        for each in rows:
            asked = [keys[turn["content"]].prompt_key for turn in each.messages if turn["role"] == "user"]
            assert asked[-1] == each.host_key != each.prompt_key and len(asked) == (3 if name == "swapped" else 1)
            assert len(set(half([*asked, each.prompt_key], 0).tolist())) == 1
            assert each.tags["host_source"] == keys[each.prompt].source
    alone = [each for each in keys.values() if half([each.prompt_key], 0)[0]]
    few = table(tmp_path / "f.jsonl", [{**row(int(each.id[1:])), **long} for each in alone])
    with pytest.raises(ConfigError, match=r"part 'swapped' is held out, .* give harmless more prompts"):
        gathered(training, {**apart[0], "data": few}, apart[2])


def test_wrapped_and_swapped_copies_keep_key_label_and_source(tmp_path: Path) -> None:
    data = table(tmp_path / "t.jsonl", [row(n) for n in range(40)])
    found = gathered(
        {"name": "own", "data": data},
        {"name": "wrapped", "like": "own", "augment": "wrap"},
        {"name": "harmless", "like": "own", "label": "benign"},
        {"name": "swapped", "like": "own", "label": "harmful", "augment": "swap", "under": "harmless"},
    )
    plain = {each.id: each for each in found["own"].conversations}
    for name, how in (("wrapped", "wrap"), ("swapped", "swap")):
        for copy in found[name].conversations:
            before = plain[copy.id.removesuffix(f"+{how}")]
            assert copy.prompt != before.prompt and copy.prompt_key == before.prompt_key
            assert (copy.response, copy.label, copy.source) == (before.response, before.label, before.source)
    assert all(
        before in copy
        for before, copy in zip(
            (each.prompt for each in found["own"].conversations),
            (each.prompt for each in found["wrapped"].conversations),
            strict=True,
        )
    )
    harmless = {each.prompt for each in found["harmless"].conversations}
    assert {each.prompt for each in found["swapped"].conversations} <= harmless
    assert {each.label for each in found["swapped"].conversations} == {"harmful"}


def test_a_key_that_a_table_brings_keeps_its_prompts_together(tmp_path: Path) -> None:
    rows = [row(n, prompt_key=f"group {n // 4}") for n in range(40)]
    found = gathered({"name": "own", "data": table(tmp_path / "t.jsonl", rows), "hold_out": 0.3})
    sides = [{each.prompt_key for each in part.conversations} for part in found.values()]
    assert all(sides) and not sides[0] & sides[1] and len(sides[0] | sides[1]) == 10


def test_permissive_takes_only_training_data_by_its_licence(tmp_path: Path) -> None:
    rows = [row(0), row(1, licence="CC-BY-NC-4.0"), row(2, licence=None), row(3)]
    held = [row(10, licence="CC-BY-NC-4.0"), row(11)]
    parts = (
        {"name": "a", "data": table(tmp_path / "t.jsonl", rows)},
        {"name": "v", "data": table(tmp_path / "v.jsonl", held), "split": "v"},
    )
    assert ids(gathered(*parts)["a"]) == ["r0", "r1", "r2", "r3"]
    found = gathered(*parts, permissive_only=True)
    assert ids(found["a"]) == ["r0", "r3"] and ids(found["v"]) == ["r10", "r11"]
    assert "left out 2" in found["a"].left_out and "CC-BY-NC-4.0" in found["a"].left_out
    with pytest.raises(ConfigError, match="part 'a' is empty"):
        gathered({"name": "a", "data": table(tmp_path / "t.jsonl", [rows[1]])}, permissive_only=True)


def test_a_written_part_begins_with_the_target_or_with_nothing(tmp_path: Path) -> None:
    data = table(
        tmp_path / "t.jsonl",
        [
            row(0, label=None, response=None, target="Sure, here is the list"),
            row(1, label=None, response=None),
            row(2, label="harmful", response="stored words", target="Sure, here"),
        ],
    )
    found = gathered({"name": "a", "data": data, "labelled": "harmful", "written": True})["a"]
    assert [(each.label, each.response) for each in found.conversations] == [
        ("harmful", "Sure, here is the list"),
        ("harmful", ""),
        ("harmful", "stored words"),
    ]
    own = gathered({"name": "a", "data": data, "labelled": "benign", "written": True})["a"].conversations
    assert [(each.label, each.response) for each in own] == [
        ("benign", ""),
        ("benign", ""),
        ("harmful", "stored words"),
    ]


def test_without_written_prompts_alone_are_left_out(tmp_path: Path) -> None:
    data = table(tmp_path / "t.jsonl", [row(0, response=None, label=None), row(1)])
    assert ids(gathered({"name": "a", "data": data})["a"]) == ["r1"]


def test_the_prompts_of_this_package_are_there_by_name() -> None:
    found = gathered({"name": "a", "data": "anydepth:benign_prompts", "labelled": "benign", "written": True})["a"]
    assert len(found.conversations) > 50 and {each.label for each in found.conversations} == {"benign"}
    assert {each.licence for each in found.conversations} == {"CC0-1.0"}
    with pytest.raises(ConfigError, match="no data called 'anydepth:more'; there is anydepth:benign_prompts"):
        gathered({"name": "a", "data": "anydepth:more"})


def test_the_order_of_the_data_does_not_decide_what_is_held_out(tmp_path: Path) -> None:
    rows = [row(n) for n in range(40)]
    sides = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        data = table(tmp_path / f"{name}.jsonl", order)
        sides.append({*ids(gathered({"name": "own", "data": data, "hold_out": 0.25})[held_out_of("own")])})
    assert sides[0] == sides[1] and len(sides[0]) == 10


# -- other -------------------------------------------------------------------------------------------------------------


def test_the_recipe_for_own_data_holds_a_quarter_out_and_adds_frames(tmp_path: Path) -> None:
    data = table(tmp_path / "t.jsonl", [row(n) for n in range(60)])
    recipe = recipe_for([data])
    found = {each.part.name: each for each in gather(recipe)}
    assert [each.part.split for each in found.values()].count(TRAIN) == len(found) - 1
    assert 13 <= len(found["own held out"].conversations) <= 17
    texts = [frame.text.partition("{request}")[0][:20] for frame in frames()]
    assert all(any(text in each.prompt for text in texts) for each in found["own wrapped"].conversations)
    splits = {each.part.split for each in found.values()}
    assert {
        *recipe.calibrate["benign"],
        *(pair[side] for pair in recipe.choose["pairs"] for side in ("harmful", "benign")),
    } <= splits


def test_sources_are_counted_by_licence_for_the_card(tmp_path: Path) -> None:
    rows = [row(0), row(1), row(2), row(3, licence="CC-BY-4.0")]
    found = gathered(
        {"name": "a", "data": table(tmp_path / "t.jsonl", rows)},
        {"name": "v", "data": table(tmp_path / "v.jsonl", [row(9, source="held out")]), "split": "v"},
    )
    assert training_sources(list(found.values())) == (
        {"name": "s0", "licence": "MIT", "answers": "2"},
        {"name": "s1", "licence": "CC-BY-4.0", "answers": "1"},
        {"name": "s1", "licence": "MIT", "answers": "1"},
    )
