"""The guard inside vLLM: the same answers as without it, the same scores as Transformers, nothing leaves unchecked."""

import json

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from anydepth import LinearProbe
from anydepth.errors import CheckError
from anydepth.schedule import Every, scheduled_depths
from anydepth.vllm.engine.pending_check import PendingCheck
from anydepth.vllm.report_field import KEY, parse_stop_reason
from tests.vllm.engine import monitor
from tests.vllm.model import PROMPTS

OFF = {"guard": False}
SAMPLINGS = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 7},
    "top_p": {"temperature": 0.8, "top_p": 0.9, "seed": 3, "logprobs": 2},
    "min_p, bias": {"temperature": 0.8, "min_p": 0.02, "seed": 3, "logit_bias": {30: 2.0}},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    "min_tokens": {"temperature": 1.0, "seed": 5, "min_tokens": 12},
}


@pytest.fixture(scope="module")
def engine(engines):
    return engines(settings=None)


@pytest.fixture(scope="module")
def probe(probe_file):
    return LinearProbe.load(probe_file)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
@pytest.mark.parametrize("many", [1, 8])
def test_a_guarded_answer_is_the_unguarded_one(engine, sampling, many):
    plain = engine.answers(PROMPTS[:many], guard=OFF, **sampling)
    guarded = engine.answers(PROMPTS[:many], guard=monitor(interval=5), **sampling)
    held = engine.answers(PROMPTS[:many], guard={"interval": 5, "threshold": 1.0}, **sampling)
    assert [each.token_ids for each in guarded] == [each.token_ids for each in plain]
    assert [each.token_ids for each in held] == [each.token_ids for each in plain]
    assert [each.finish_reason for each in held] == [each.finish_reason for each in plain]
    assert not any(each.report for each in plain) and all(each.report for each in held)
    if "logprobs" in sampling:
        for mine, theirs in zip(held, plain, strict=True):
            assert len(mine.logprobs) == len(mine.token_ids)
            for one, other in zip(mine.logprobs, theirs.logprobs, strict=True):
                assert one.keys() == other.keys()
                for token in one:
                    assert one[token].logprob == pytest.approx(other[token].logprob, abs=1e-3)


def test_scores_are_those_of_transformers(engine, reference, probe):
    names = [engine.add(each, guard=monitor(interval=7), temperature=1.0, seed=n) for n, each in enumerate(PROMPTS)]
    told = engine.run()
    lowest, highest, ended = 1.0, 0.0, 0
    for name, messages in zip(names, PROMPTS, strict=True):
        answer = told[name]
        end = int(answer.finish_reason == "stop")
        ended += end
        length = len(answer.token_ids) - end
        checks = {each["depth"]: each["score"] for each in answer.report["timeline"]}
        assert set(checks) == {*scheduled_depths(Every(7), length)} - ({length} if not length else set()) | {0}
        wanted = reference.scores(probe, engine.ids(messages), answer.token_ids[:length], list(checks))
        assert checks == pytest.approx(wanted, abs=1e-3)
        lowest, highest = min(lowest, *checks.values()), max(highest, *checks.values())
    assert lowest < 0.2 and highest > 0.8 and 0 < ended < len(PROMPTS), "the comparison must not be trivial"


def test_sixteen_answers_at_once_get_their_own_verdicts(engine, asynchronous):
    guard = {"interval": 10, "threshold": 0.75}
    alone = [engine.answer(each, guard=guard) for each in PROMPTS[:16]]
    together = engine.answers(PROMPTS[:16], guard=guard)
    assert 3 <= sum(each.halted for each in together) <= 13
    assert len({each.report["depth"] for each in together if each.halted}) > 1
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids == other.token_ids and one.halted == other.halted
        assert one.report["depth"] == other.report["depth"]
        record = engine.record(other.id)
        assert all(each["checked_at"] is not None for each in record["windows"])
        if other.halted:
            report = parse_stop_reason(other.stop_reason)
            assert report == other.report and report["reason"] == "policy" and report["score"] >= 0.75
            held = sum(w["stop"] - w["start"] for w in record["windows"] if w["state"] == "withheld")
            assert len(other.token_ids) + held == report["generated"]
            # one was sampled in the step of the check; with asynchronous scheduling one more may be under way
            assert held + 1 <= report["withheld_tokens"] <= held + 1 + asynchronous
    assert engine.verified().blocked >= 6


def test_nothing_leaves_before_the_check_that_covers_it(engine):
    """What a client has at any step is at most what the deepest check so far covers."""
    names = [engine.add(each, guard=json.dumps({"interval": 9}), max_tokens=33) for each in PROMPTS[:6]]

    def covered(told):
        for name, answer in told.items():
            records = engine.records(name)
            windows = [each for each in records if each["kind"] == "window"]
            assert len(answer.token_ids) <= max((each["stop"] for each in windows), default=0)
            assert all(each["checked_at"] is not None for each in windows)

    told = engine.run(each_step=covered)
    for name in names:
        assert sum(len(piece) > 0 for piece in told[name].pieces) >= 3 or told[name].halted
        assert [sum(map(len, told[name].pieces[: n + 1])) for n in range(3)] == [1, 2, 4] or told[name].halted
    engine.verified()


def test_the_last_window_is_checked_whatever_its_length(engine):
    for length in (1, 2, 3, 10, 11):
        answer = engine.answer(PROMPTS[3], guard=monitor(interval=10), max_tokens=length, ignore_eos=True)
        assert [each["depth"] for each in answer.report["timeline"]][-1] == length == len(answer.token_ids)
        assert answer.finish_reason == "length"


def test_the_end_of_turn_is_checked_and_counts_no_depth(engine):
    bias = {2: 100.0}
    for before in (0, 1, 5, 8, 10):
        answer = engine.answer(
            PROMPTS[1], guard=monitor(interval=10), min_tokens=before, logit_bias=bias, max_tokens=30
        )
        assert answer.finish_reason == "stop" and len(answer.token_ids) == before + 1
        depths = [each["depth"] for each in answer.report["timeline"]]
        assert depths[-1] == before and depths[0] == 0
    engine.verified()


def test_release_modes(engine, asynchronous):
    plain = engine.answer(PROMPTS[2], guard=OFF, ignore_eos=True)
    eager = engine.answer(PROMPTS[2], guard={"release": "eager", "interval": 10, "threshold": 1.0}, ignore_eos=True)
    assert eager.token_ids == plain.token_ids and max(map(len, eager.pieces)) == 1
    checks = engine.answer(PROMPTS[2], guard=monitor(interval=10), ignore_eos=True).report["timeline"]
    worst = max(each["score"] for each in checks[1:])
    if checks[0]["score"] < worst:
        guard = {"release": "eager", "interval": 10, "threshold": worst}
        cut = engine.answer(PROMPTS[2], guard=guard, ignore_eos=True)
        depth = next(each["depth"] for each in checks if each["score"] >= worst)
        assert cut.halted and len(cut.token_ids) == depth
        assert parse_stop_reason(cut.stop_reason)["withheld_tokens"] <= 1 + asynchronous


def test_a_prefix_that_is_cached_does_not_hide_depth_0(engine, reference, probe):
    long = [{"role": "user", "content": " ".join(f"w{n % 200}" for n in range(90))}]
    first, second = (engine.answer(long, guard=monitor(), max_tokens=3, ignore_eos=True) for _ in range(2))
    wanted = reference.scores(probe, engine.ids(long), second.token_ids, [0, 1, 2, 3])
    for answer in (first, second):
        checks = {each["depth"]: each["score"] for each in answer.report["timeline"]}
        assert checks == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_prompt_that_ends_at_a_block_border_is_read(engine, reference, probe, blocks):
    for size in range(20, 36):
        messages = [{"role": "user", "content": " ".join(f"w{(n * 7 + blocks) % 200}" for n in range(size))}]
        for _ in range(2):
            answer = engine.answer(messages, guard=monitor(), max_tokens=1, ignore_eos=True)
            assert [each["depth"] for each in answer.report["timeline"]] == [0, 1]
            assert all(each["score"] is not None for each in answer.report["timeline"])


def test_a_prefill_is_checked_inside_and_at_its_end_before_the_first_token(engine, reference, probe):
    prefill = [int(each) for each in np.random.default_rng(1).integers(9, 250, 23)]
    ids = engine.ids(PROMPTS[4])
    answer = engine.answer(ids + prefill, guard=monitor(interval=10), max_tokens=5, ignore_eos=True)
    checks = {each["depth"]: each["score"] for each in answer.report["timeline"]}
    assert list(checks) == [0, 1, 2, 4, 8, 10, 20, 23, 24, 25, 27, 28]
    assert answer.report["prefill"] == 23
    wanted = reference.scores(probe, ids, prefill + answer.token_ids, list(checks))
    assert checks == pytest.approx(wanted, abs=1e-3)
    assert engine.record(answer.id)["prefill_tokens"] == 23
    plain = engine.answer(ids + prefill, guard=OFF, max_tokens=5, ignore_eos=True)
    assert plain.token_ids == answer.token_ids
    halted = engine.answer(ids + prefill, guard={"threshold": 0.0}, max_tokens=5)
    assert halted.halted and not halted.token_ids and parse_stop_reason(halted.stop_reason)["depth"] == 0
    end = max(each for depth, each in checks.items() if depth <= 23)
    cut = engine.answer(ids + prefill, guard={"threshold": end, "interval": 10}, max_tokens=5)
    assert cut.halted and not cut.token_ids and parse_stop_reason(cut.stop_reason)["depth"] <= 23
    engine.verified()


def test_a_text_without_a_header_is_guarded_too(engine, reference, probe):
    ids = [int(each) for each in np.random.default_rng(2).integers(9, 250, 40)]
    answer = engine.answer(ids, guard=monitor(interval=10), max_tokens=11, ignore_eos=True)
    assert [each["depth"] for each in answer.report["timeline"]] == [0, 1, 2, 4, 8, 10, 11]
    found = {each["depth"]: each["score"] for each in answer.report["timeline"]}
    assert found == pytest.approx(reference.scores(probe, ids, answer.token_ids, list(found)), abs=1e-3)
    assert engine.answer(ids, guard=OFF, max_tokens=11, ignore_eos=True).token_ids == answer.token_ids


def test_several_choices_of_one_request_are_guarded_each(engine):
    name = engine.add(PROMPTS[5], n=3, temperature=1.0, seed=1, guard={"interval": 10}, max_tokens=20)
    told = engine.run()[name]
    assert told.finish_reason
    found = {each["choice"]: each for each in engine.records(name) if each["kind"] == "answer"}
    assert sorted(found) == [0, 1, 2]
    engine.verified()


def test_a_stop_string_ends_the_answer_with_what_was_checked(engine):
    plain = engine.answer(PROMPTS[6], guard=OFF, ignore_eos=True)
    word = plain.text.split()[6]
    answer = engine.answer(PROMPTS[6], guard={"interval": 10, "threshold": 1.0}, ignore_eos=True, stop=[word])
    assert answer.finish_reason == "stop" and answer.stop_reason == word
    assert word not in answer.text and plain.text.startswith(answer.text)
    assert engine.record(answer.id)["outcome"] == "cancelled"
    assert not engine.scheduler.requests
    engine.verified()


def test_an_abort_closes_the_account(engine):
    keep, gone = engine.add(PROMPTS[7], guard={"interval": 5}), engine.add(PROMPTS[8], guard={"interval": 5})
    for _ in range(8):
        engine.engine.step()
    engine.engine.abort_request([gone])
    told = engine.run()
    assert gone not in told or told[gone].finish_reason in (None, "abort")
    assert engine.record(gone)["outcome"] == "cancelled" and engine.record(keep)["outcome"] == "finished"
    assert not engine.scheduler._guarded and not engine.scheduler._check_requests and not engine.scheduler.requests
    engine.verified()


def test_what_the_operator_does_not_allow_is_refused(engine):
    answer = engine.answer(PROMPTS[0], guard={"interval": 500})
    report = parse_stop_reason(answer.stop_reason)
    assert report["reason"] == "refused" and report["param"] == "anydepth.interval" and not answer.token_ids
    for wrong in ('{"interval":', {"unknown": 1}, "[]", {"interval": 0}):
        assert parse_stop_reason(engine.answer(PROMPTS[0], guard=wrong).stop_reason)["reason"] == "refused"


def test_the_report_of_an_answer(engine):
    answer = engine.answer(PROMPTS[9], guard={"interval": 10, "threshold": 1.0}, ignore_eos=True)
    assert answer.report["halted"] is False and "timeline" not in answer.report and answer.stop_reason is None
    assert answer.report["generated"] == 40 and answer.report["detector"] == "probe" and KEY == "anydepth"


def test_an_answer_that_ends_at_once_is_checked_again_where_its_check_failed(engines, monkeypatch):
    """Depth 0 is read in the prompt; its reading fails, and the end of turn, which has no depth, asks for it again."""
    engine = engines(settings=None)
    whole, failures = PendingCheck.score, [CheckError("no state")]
    monkeypatch.setattr(PendingCheck, "score", lambda check, *args: failures.pop() if failures else whole(check, *args))
    end = {next(iter(engine.scheduler.setup.model.end_token_ids)): 100.0}
    answer = engine.answer(PROMPTS[0], guard=monitor(), max_tokens=5, logit_bias=end)
    checks = answer.report["timeline"]
    assert answer.finish_reason == "stop" and len(answer.token_ids) == 1
    assert [each["depth"] for each in checks] == [0, 0]
    assert checks[0]["error"] == "CheckError" and checks[1]["score"] is not None
    engine.verified()
