"""A cascade inside vLLM: probe, look-ahead and an external guard, each asked where those before it are unsure."""

import threading

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from anydepth import LinearProbe, Rethink, Threshold
from anydepth.detectors import Cascade, ExternalGuard
from tests.fake_guard import FakeGuard
from tests.vllm import own_cascade
from tests.vllm.engine import OVERRIDES, monitor
from tests.vllm.model import PROMPTS
from tests.vllm.own_cascade import Words

OFF = {"guard": False}
LOW, HIGH, UNSURE = 0.3, 0.8, (0.4, 0.6)
STEPS = 6
SETTINGS = {"guard": {"detector": "tests.vllm.own_cascade:made"}}


def doubts(text: str) -> str:
    """The verdict of the external guard: by the length of what it was asked."""
    return "unsafe" if len(text) % 2 else "safe"


@pytest.fixture(scope="module")
def endpoint():
    guard = FakeGuard(verdict=doubts)
    yield guard
    guard.close()


@pytest.fixture(autouse=True)
def sure(endpoint):
    """The endpoint as it is at first, after each test."""
    yield
    endpoint.verdict, endpoint.before = doubts, lambda: None
    endpoint.requests.clear()


@pytest.fixture(scope="module")
def probe(probe_file):
    return LinearProbe.load(probe_file)


@pytest.fixture(scope="module")
def cascade(probe_file, endpoint):
    """Makes the cascade of the tests, anew for each process that needs it."""

    def make() -> Cascade:
        second = Rethink(max_new_tokens=STEPS, matcher=Words())  # type: ignore[arg-type]
        third = ExternalGuard(endpoint.url, "g", form="turns", timeout=5, retries=0)
        return Cascade(
            LinearProbe.load(probe_file), second, LOW, HIGH, policy=Threshold(1.0), third=third, unsure=UNSURE
        )

    own_cascade.making.append(make)
    yield make
    own_cascade.making.clear()


@pytest.fixture(scope="module")
def engine(engines, cascade):
    return engines(settings=SETTINGS)


def greedy(reference, ids: list[int], ends) -> str:
    """What the model in Transformers goes on with, at most six tokens."""
    found: list[int] = []
    for _ in range(STEPS):
        with torch.no_grad():
            token = int(reference.model(torch.tensor([ids + found])).logits[0, -1].argmax())
        found.append(token)
        if token in ends:
            break
    return reference.template.tokenizer.decode(found, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class Expected:
    """What a cascade makes of an answer, put together by hand from the model in Transformers."""

    def __init__(self, engine, reference, probe, ids: list[int], answer: list[int], start: int) -> None:
        self.engine, self.reference, self.ids, self.answer, self.start = engine, reference, ids, answer, start
        self.probe = probe

    def at(self, depth: int) -> tuple[float, list[str]] | None:
        """Score, and the names of the stages that were asked; None where rounding decides who is asked."""
        prompt = self.ids[: self.start]
        (score,) = self.reference.scores(self.probe, prompt, self.answer, [depth]).values()
        if any(abs(score - edge) < 2e-3 for edge in (LOW, HIGH)):
            return None
        if not LOW <= score < HIGH:
            return score, ["probe"]
        text = prompt + (self.answer[:depth] + list(self.reference.template.header.ids) if depth else [])
        refused = Words().is_refusal(greedy(self.reference, text, self.engine.scheduler.setup.model.end_token_ids))
        score = (score + (HIGH if refused else LOW)) / 2
        low, high = UNSURE
        if any(abs(score - edge) < 2e-3 for edge in UNSURE):
            return None
        if not low <= score < high:
            return score, ["probe", "rethink"]
        decode = self.engine.scheduler.setup.model.decode_text
        asked = decode(self.answer[:depth]) if depth else decode(prompt)
        unsafe = doubts(asked) == "unsafe"
        return (score + (high if unsafe else low)) / 2, ["probe", "rethink", "external"]


def compare(engine, reference, probe, messages, answer, *, prefill=()):
    """Scores, stages and sums of a monitored answer; returns how many checks each stage decided."""
    ids = engine.ids(messages)
    end = int(answer.finish_reason == "stop")
    whole = [*prefill, *answer.token_ids[: len(answer.token_ids) - end]]
    expected = Expected(engine, reference, probe, ids, whole, len(ids))
    decided = {"probe": 0, "rethink": 0, "external": 0}
    asked, depths = dict(decided), set()
    for check in answer.report["timeline"]:
        if check["depth"] in depths:
            assert "stage" not in check  # the end of turn right behind a check: nobody was asked
            continue
        depths.add(check["depth"])
        found = expected.at(check["depth"])
        score, stages = (
            (check["score"], list(asked)[: list(asked).index(check["stage"]) + 1]) if found is None else found
        )
        assert (check["score"], check["stage"]) == (pytest.approx(score, abs=2e-3), stages[-1]), check
        decided[check["stage"]] += 1
        for name in stages:
            asked[name] += 1
    sums = answer.report["stages"]
    assert {name: count for name, count in asked.items() if count} == {name: sums[name]["checks"] for name in sums}
    assert all(sums[name]["decided"] == decided[name] for name in sums)
    assert ("rethink" in sums) == (sums.get("rethink", {}).get("look_ahead_tokens", 0) > 0)
    return decided


def test_scores_and_stages_are_those_of_the_same_model_in_transformers(engine, reference, probe, endpoint):
    many = PROMPTS[:14]
    plain = engine.answers(many, guard=OFF, temperature=1.0, seed=3)
    told = engine.answers(many, guard=monitor(interval=7), temperature=1.0, seed=3)
    assert [each.token_ids for each in told] == [each.token_ids for each in plain]
    assert [each.finish_reason for each in told] == [each.finish_reason for each in plain]
    total = {"probe": 0, "rethink": 0, "external": 0}
    for messages, answer in zip(many, told, strict=True):
        for name, count in compare(engine, reference, probe, messages, answer).items():
            total[name] += count
    assert min(total.values()) >= 10, "the comparison must not be trivial"
    assert len(endpoint.asked) <= total["external"]
    assert not engine.scheduler.requests and not engine.scheduler._check_requests
    engine.verified()


def test_a_check_of_every_token(engine, reference, probe):
    plain = engine.answers(PROMPTS[:3], guard=OFF, max_tokens=14, ignore_eos=True)
    told = engine.answers(PROMPTS[:3], guard=monitor(interval=1), max_tokens=14, ignore_eos=True)
    assert [each.token_ids for each in told] == [each.token_ids for each in plain]
    for messages, answer in zip(PROMPTS, told, strict=False):
        assert [each["depth"] for each in answer.report["timeline"]] == list(range(15))
        compare(engine, reference, probe, messages, answer)


def test_a_prefill_is_checked_inside_by_all_stages(engine, reference, probe):
    prefill = [int(each) for each in np.random.default_rng(1).integers(9, 250, 23)]
    ids = [*engine.ids(PROMPTS[4]), *prefill]
    answer = engine.answer(ids, guard=monitor(interval=10), max_tokens=5, ignore_eos=True)
    assert [each["depth"] for each in answer.report["timeline"]] == [0, 1, 2, 4, 8, 10, 20, 23, 24, 25, 27, 28]
    decided = compare(engine, reference, probe, PROMPTS[4], answer, prefill=prefill)
    assert decided["rethink"] + decided["external"] >= 3
    assert answer.token_ids == engine.answer(ids, guard=OFF, max_tokens=5, ignore_eos=True).token_ids


@pytest.mark.parametrize("before", [0, 1, 5, 8, 10])
def test_the_end_of_turn_behind_a_check_that_waits(engine, reference, probe, before):
    options = {"min_tokens": before, "logit_bias": {2: 100.0}, "max_tokens": 30}
    told = engine.answers(PROMPTS[:6], guard=monitor(interval=4), **options)
    for messages, answer in zip(PROMPTS, told, strict=False):
        assert answer.finish_reason == "stop" and len(answer.token_ids) == before + 1
        assert answer.report["timeline"][-1]["depth"] == before and not answer.report["failed_checks"]
        compare(engine, reference, probe, messages, answer)
    engine.verified()


@pytest.mark.parametrize("length", [1, 2, 9])
def test_the_last_window_is_checked_whatever_its_length(engine, reference, probe, length):
    told = engine.answers(PROMPTS[:6], guard=monitor(interval=8), max_tokens=length, ignore_eos=True)
    for messages, answer in zip(PROMPTS, told, strict=False):
        assert answer.report["timeline"][-1]["depth"] == length == len(answer.token_ids)
        compare(engine, reference, probe, messages, answer)


def doubtful(engine, stage: str):
    """A request, an answer's first check behind depth 2 that `stage` decided and that scores more than those before."""
    for messages in PROMPTS:
        answer = engine.answer(messages, guard=monitor(interval=5), ignore_eos=True)
        top = 0.0
        for check in answer.report["timeline"]:
            if check["score"] > top + 1e-3 and check["depth"] > 2 and check["stage"] == stage:
                return messages, check, top
            top = max(top, check["score"])
    raise AssertionError("no answer has such a check; plant another probe")


@pytest.mark.parametrize("stage", ["rethink", "external"])
def test_each_stage_halts_before_a_token_leaves_that_its_check_covers(engine, asynchronous, stage):
    messages, check, top = doubtful(engine, stage)
    guard = {"interval": 5, "threshold": (check["score"] + top) / 2}
    name = engine.add(messages, guard={**guard, "checks": True}, ignore_eos=True)

    def covered(told):
        windows = [each for each in engine.records(name) if each["kind"] == "window"]
        assert name not in told or len(told[name].token_ids) <= max((each["stop"] for each in windows), default=0)

    answer = engine.run(each_step=covered)[name]
    assert answer.halted and answer.report["depth"] == check["depth"]
    assert answer.report["timeline"][-1]["stage"] == stage and answer.report["reason"] == "policy"
    record = engine.record(name)
    assert record["checks"][-1]["stage"] == stage and record["stages"][stage]["decided"] >= 1
    held = sum(w["stop"] - w["start"] for w in record["windows"] if w["state"] == "withheld")
    assert len(answer.token_ids) + held == check["depth"]
    assert held + 1 <= answer.report["withheld_tokens"] <= held + 1 + asynchronous
    assert not engine.scheduler.requests
    engine.verified()


def test_an_endpoint_that_fails_halts_the_answer(engine, endpoint):
    messages, check, _ = doubtful(engine, "external")
    engine.scheduler.setup.detector.third._known.clear()  # else no request is made again about a text
    endpoint.verdict = lambda text: (500, {"error": {"message": "down"}})
    answer = engine.answer(messages, guard={"interval": 5, "checks": True}, ignore_eos=True)
    assert answer.halted and answer.report["reason"] == "error" and answer.report["error"] == "ProviderError"
    assert answer.report["depth"] <= check["depth"] and len(answer.token_ids) < check["depth"]
    assert answer.report["stages"]["external"]["requests"] >= 1
    last = answer.report["timeline"][-1]
    assert last["score"] is None and last["stage"] == "external"
    engine.verified()


def test_other_answers_go_on_while_one_waits_for_its_verdict(engine, endpoint):
    messages, _, _ = doubtful(engine, "external")
    endpoint.requests.clear()
    ended, asked = threading.Event(), threading.Event()
    # not the request that was made above, whose verdict is kept
    endpoint.before = lambda: (asked.set(), ended.wait(30))
    waits = engine.add([*engine.ids(messages), 9], guard=monitor(interval=1), max_tokens=40, ignore_eos=True)
    free = engine.add(PROMPTS[1], guard=OFF, max_tokens=40, ignore_eos=True)
    order: list[str] = []

    def watch(told):
        if free in told and told[free].finish_reason and free not in order:
            order.append(free)
            ended.set()
        if waits in told and told[waits].finish_reason and waits not in order:
            order.append(waits)

    told = engine.run(each_step=watch)
    assert asked.is_set(), "the guard was not asked; take another request"
    assert order == [free, waits] and len(told[waits].token_ids) == 40


def test_an_abort_while_the_endpoint_is_waited_for(engine, endpoint):
    ended = threading.Event()
    endpoint.before = lambda: ended.wait(30)
    name = engine.add([*engine.ids(PROMPTS[2]), 9, 10], guard={"interval": 1}, max_tokens=40, ignore_eos=True)
    for _ in range(2000):
        engine.engine.step()
        if any(each.staged.outside for each in engine.scheduler._guarded.values()):
            break
    else:
        raise AssertionError("the guard was not asked; take another request")
    assert engine.scheduler.has_requests() and not engine.scheduler.running
    engine.engine.abort_request([name])
    engine.run()
    ended.set()
    assert engine.record(name)["outcome"] == "cancelled"
    assert not engine.scheduler.requests and not engine.scheduler._guarded
    engine.verified()


@pytest.mark.parametrize("caching", [True, False])
def test_a_cache_that_is_too_small_for_all(engines, cascade, reference, probe, caching):
    engine = engines(settings=SETTINGS, num_gpu_blocks_override=9, max_model_len=128, enable_prefix_caching=caching)
    many = PROMPTS[:5]
    plain = engine.answers(many, guard=OFF, max_tokens=40, ignore_eos=True)
    told = engine.answers(many, guard=monitor(interval=4), max_tokens=40, ignore_eos=True)
    assert [each.token_ids for each in told] == [each.token_ids for each in plain]
    for messages, answer in zip(many, told, strict=True):
        assert answer.report["failed_checks"] == 0
        compare(engine, reference, probe, messages, answer)
    engine.verified()
    assert not engine.scheduler.requests and not engine.scheduler._guarded


def test_the_probability_of_a_refusal_as_second_stage(engines, probe_file, reference, probe, monkeypatch):
    openers = (20, 21, 30, 60, 90)
    second = lambda: Cascade(LinearProbe.load(probe_file), Rethink("score", opener_ids=openers), LOW, HIGH)  # noqa: E731
    monkeypatch.setattr(own_cascade, "making", [second])
    engine = engines(settings={**SETTINGS, "overrides": OVERRIDES}, max_num_seqs=8)
    told = engine.answers(PROMPTS[:4], guard=monitor(interval=6), max_tokens=20, ignore_eos=True)
    asked = 0
    for messages, answer in zip(PROMPTS, told, strict=False):
        prompt, header = engine.ids(messages), list(reference.template.header.ids)
        for check in answer.report["timeline"]:
            depth = check["depth"]
            (score,) = reference.scores(probe, prompt, answer.token_ids, [depth]).values()
            if any(abs(score - edge) < 2e-3 for edge in (LOW, HIGH)):
                continue
            if check["stage"] == "rethink":
                asked += 1
                text = prompt + (answer.token_ids[:depth] + header if depth else [])
                with torch.no_grad():
                    mass = reference.model(torch.tensor([text])).logits[0, -1].softmax(-1)[list(openers)].sum()
                score = (score + float(mass) * HIGH + (1 - float(mass)) * LOW) / 2
            assert check["score"] == pytest.approx(score, abs=2e-3) and (check["stage"] == "rethink") == (
                LOW <= score < HIGH
            )
    assert asked >= 5
