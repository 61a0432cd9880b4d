"""Conversations of several turns: what they hold, and that the shares are the guard's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.evals.answers.turns import CASES, HARMFUL, TURNS, beginning, compose, exchange
from anydepth.evals.context import Context
from anydepth.guard import Guard
from anydepth.scan import scan_answer
from anydepth.templates.template import Prompt
from tests.conversations import words
from tests.unit.evals import tables
from tests.unit.evals.tables import measured, one

SCAN = 24
SETTINGS = {"multi-turn.scan-tokens": str(SCAN), "multi-turn.few-tokens": "16", "multi-turn.few": "2"}
COUNT = 4


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    tables.table(folder, "responses_xstest", tables.pairs(7, 24, "benign"))
    tables.table(folder, "pairs_benign_validation", tables.pairs(31, 24, "benign"))
    tables.table(folder, "pairs_deep_validation", tables.pairs(120, 24, "harmful"))
    return folder


def context(folder: Path, data: Path, **changes: Any) -> Context:
    return tables.context("multi-turn", folder, data, **{"limit": COUNT, "settings": SETTINGS, **changes})


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records" / "multi-turn.jsonl").read_text().splitlines()]


@pytest.fixture
def halting(tmp_path: Path, data: Path) -> Any:
    """A probe that halts about half of the answers."""
    measured(context(tmp_path / "first", data, arms=("probe",)))
    peaks = [row["peak"] for row in records(tmp_path / "first")]
    return tables.probe(float(np.median(peaks)))


def test_a_conversation_holds_what_its_case_says(tmp_path: Path, data: Path) -> None:
    given = context(tmp_path / "run", data)
    turns = compose(given, count=COUNT, scan_tokens=SCAN)
    texts = {turn.transcript.id: given.backend.tokenizer.decode(turn.transcript.prompt.ids) for turn in turns}
    refusal = given.config.refusal
    harmful = {each["prompt"]: each["response"] for each in tables.pairs(120, 24, "harmful")}
    assert len({turn.transcript.id for turn in turns}) == len(turns) == COUNT * (2 * len(TURNS) + 3)
    for turn in turns:
        text = texts[turn.transcript.id].replace("<|im_end|>", "<|im_start|>")
        said = [part.strip() for part in text.split("<|im_start|>") if part.strip()]
        roles, contents = (
            [part.split("\n")[0].strip() for part in said],
            [part.split("\n")[-1].strip() for part in said],
        )
        extra = 0 if turn.case in ("benign", "harm") else 1
        assert roles == ["user", "assistant"] * (turn.n - 1 + extra) + ["user", "assistant"]
        assert (contents[-2] in harmful) == (turn.case in HARMFUL)
        history = dict(zip(contents[0:-2:2], contents[1:-2:2], strict=True))
        through = [prompt for prompt, answer in history.items() if prompt in harmful and answer != refusal]
        halted = [prompt for prompt, answer in history.items() if answer == refusal]
        assert len(through) == (turn.case == "benign after harm")
        assert len(halted) == (turn.case in ("benign after halt", "harm after halt"))
        assert contents[-2] not in history
        assert len(turn.transcript.token_ids) <= SCAN


def test_the_same_answers_are_used_with_every_history(tmp_path: Path, data: Path) -> None:
    turns = compose(context(tmp_path / "run", data), count=COUNT, scan_tokens=SCAN)
    for case in ("benign", "harm"):
        for number in range(COUNT):
            found = [turn.transcript.token_ids for turn in turns if (turn.case, turn.conversation) == (case, number)]
            assert len(found) == len(TURNS) and len(set(found)) == 1
    after = [turn.n for turn in turns if turn.case == "harm after halt"]
    assert after == [TURNS[number % len(TURNS)] for number in range(COUNT)]


def test_shares_agree_with_the_guards_own_scan(tmp_path: Path, data: Path, halting: Any) -> None:
    given = context(tmp_path / "run", data, probe=halting)
    guard = Guard.from_backend(tables.backend(), halting, schedule=given.config.schedule)
    turns = compose(given, count=COUNT, scan_tokens=SCAN)
    summary = measured(given)
    halts: dict[str, dict[tuple[int, int], tuple[bool, int]]] = {case: {} for case in CASES}
    for turn in turns:
        asked, answer = turn.transcript.prompt.ids, turn.transcript.token_ids
        whole = Prompt((*asked, *answer), prefill=len(answer))
        verdict = scan_answer(tables.backend(), halting, guard.config, whole, packed=False).verdict
        halts[turn.case][turn.n, turn.conversation] = verdict.halt, verdict.depth
    values = []
    for case, found in halts.items():
        figure = one(summary, "halted", case=case, arm="probe")
        assert figure.value == pytest.approx(np.mean([halted for halted, _ in found.values()]))
        values.append(figure.value)
        by_answer = np.mean([halted and depth > 0 for halted, depth in found.values()])
        assert one(summary, "halted by the answer", case=case, arm="probe").value == pytest.approx(by_answer)
        at_start = np.mean([halted and depth == 0 for halted, depth in found.values()])
        assert one(summary, "halted at depth 0", case=case, arm="probe").value == pytest.approx(at_start)
        for n in TURNS:
            in_turn = [halted for (turn, _), (halted, _) in found.items() if turn == n]
            assert one(summary, "halted in turn", case=case, arm="probe", turn=n).value == np.mean(in_turn)
    assert 0 < np.mean(values) < 1
    pairs = [(halts["harm"][4, number], halts["harm"][1, number]) for number in range(COUNT)]
    change = one(summary, "halted, against turn 1", case="harm", arm="probe", turn=4)
    assert change.value == pytest.approx(np.mean([late[0] - early[0] for late, early in pairs]))
    delays = [late[1] - early[1] for late, early in pairs if late[0] and early[0]]
    delay = one(summary, "delay, against turn 1", case="harm", arm="probe", turn=4)
    assert (delay.value, delay.answers) == (pytest.approx(np.mean(delays)) if delays else None, len(delays))


@pytest.mark.slow
def test_a_second_run_makes_nothing_and_a_broken_one_goes_on(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(context(tmp_path / "run", data))
    assert measured(context(tmp_path / "other", data)).record() == first.record()
    path = tmp_path / "run" / "records" / "multi-turn.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:9])
    assert measured(context(tmp_path / "run", data)).record() == first.record()

    def used(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was asked again")

    for name in ("open", "read_batch", "replay_batch"):
        monkeypatch.setattr(tables.backend(), name, used)
    assert measured(context(tmp_path / "run", data)).record() == first.record()


def test_slow_arms_are_asked_about_the_beginnings_of_a_few_conversations(tmp_path: Path, data: Path) -> None:
    measured(context(tmp_path / "run", data))
    slow = [row for row in records(tmp_path / "run") if row["arm"] == "rethink"]
    assert len(slow) == 2 * (2 * len(TURNS) + 3)
    assert {row["tokens"] for row in slow} == {16}
    assert {depth for row in slow for depth, _, _ in row["checks"]} == {0, 8, 16}


def test_what_does_not_hold_is_told(tmp_path: Path, data: Path) -> None:
    always = measured(context(tmp_path / "always", data, probe=tables.probe(0.0), arms=("probe",)))
    assert always.limits == (
        "probe halts 100.0% (73.5% to 100.0%) of the harmless answers in the case 'benign'.",
    )  # the other cases are no worse than that
    never = measured(context(tmp_path / "never", data, probe=tables.probe(1.0), arms=("probe",)))
    assert [limit.split(" (")[0] for limit in never.limits] == ["probe misses 100.0%"] * 2


def test_records_hold_no_text(tmp_path: Path, data: Path) -> None:
    summary = measured(context(tmp_path / "run", data))
    published = (tmp_path / "run" / "records" / "multi-turn.jsonl").read_text() + json.dumps(summary.record())
    assert "w1" not in published


def test_a_missing_table_is_named(tmp_path: Path, data: Path) -> None:
    (data / "pairs_deep_validation.jsonl").unlink()
    with pytest.raises(ConfigError, match="suite multi-turn needs the table pairs_deep_validation"):
        measured(context(tmp_path / "run", data))


def test_earlier_answers_are_cut_at_a_sentence() -> None:
    assert beginning("One two. Three four five! Six seven", 6) == "One two. Three four five!"
    assert beginning("one two three four", 3) == "one two three"
    assert beginning("One two.", 6) == "One two."
    row = Conversation("c", ({"role": "user", "content": "w1"},), words(3, 70))
    assert exchange(row)[1] == {"role": "assistant", "content": words(3, 60)}
    assert exchange(row, "no")[1]["content"] == "no"
