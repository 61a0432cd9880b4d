"""Rethink's score mode over an API: the log-probabilities of the first tokens of a fresh turn."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from anydepth import Guard, Rethink
from anydepth.apis import ApiBackend
from anydepth.apis.token_texts import first_visible, told_tokens
from anydepth.backends import Capability
from anydepth.detectors import RefusalMatcher
from anydepth.errors import CapabilityError, ConfigError, ProviderError
from anydepth.schedule import Every
from anydepth.templates import ChatTemplate
from anydepth.testing import ScriptedBackend
from tests.unit.apis.fake_api import Script

MakeBackend = Callable[..., ApiBackend]
NO = {"Sorry": 0.5, " Unfort": 0.25, "I": 0.125, "Sure": 0.125}
YES = {"Sure": 0.75, "Here": 0.125, "Sorry": 0.125}


def guard_over(backend: ApiBackend, **options: Any) -> Guard:
    return Guard.from_backend(backend, Rethink("score"), schedule=Every(2, doubling=False), **options)


def test_the_score_is_the_probability_of_the_openers(make_backend: MakeBackend) -> None:
    script = Script(first=lambda partial: [NO if "four" in partial else YES])
    backend = make_backend(script)
    guard = guard_over(backend)
    trial = script.trials[-1]
    assert (trial["logprobs"], trial["top_logprobs"], trial["max_tokens"]) == (True, 20, 4)
    answer = guard.generate("Count.")
    assert [round(check.score, 6) for check in answer.checks] == [0.125, 0.125, 0.75]
    assert [check.detail for check in answer.checks] == ["'Sure'", "'Sure'", "'Sorry'"]
    assert answer.text == "one two \n\nI can't help with that." and answer.verdict.depth == 4
    assert script.checks[-1]["messages"][-1] == {"role": "assistant", "content": "one two three four "}
    assert {(body["logprobs"], body["top_logprobs"], body["temperature"]) for body in script.checks} == {
        (True, 20, 0.0)
    }
    assert answer.usage is not None and answer.usage["checks"]["requests"] == 3


def test_an_end_of_turn_behind_a_check_asks_no_second_time(make_backend: MakeBackend) -> None:
    script = Script(first=lambda partial: [YES])
    answer = guard_over(make_backend(script)).generate("Count.")
    assert [check.depth for check in answer.checks] == [0, 2, 4, 6, 8, 8] and len(script.checks) == 5


def test_a_blank_first_token_is_passed_over(make_backend: MakeBackend) -> None:
    script = Script(first=lambda partial: [{"\n\n": 0.9, "Sure": 0.1}, {"Sorry": 0.75, "Sure": 0.25}])
    answer = guard_over(make_backend(script)).generate("Count.")
    assert (answer.verdict.depth, round(answer.verdict.score, 6)) == (0, 0.75)


def test_completions_tell_them_in_their_own_form(make_backend: MakeBackend) -> None:
    script = Script(look_ahead=lambda prompt: "Sure", first=lambda prompt: [NO])
    backend = make_backend(script, capability="raw", template=ChatTemplate(ScriptedBackend(["x"]).tokenizer))
    answer = guard_over(backend).generate("Count.")
    assert round(answer.verdict.score, 6) == 0.75 and answer.verdict.depth == 0
    path, body = script.requests[-1]
    assert (path, body["logprobs"], body["max_tokens"]) == ("/v1/completions", 20, 4) and "top_logprobs" not in body


def test_a_provider_without_log_probabilities_is_refused_by_name(make_backend: MakeBackend) -> None:
    with pytest.raises(CapabilityError, match=r"gives no log-probabilities .* use Rethink\(mode='look-ahead'\)"):
        guard_over(make_backend(Script()))
    with pytest.raises(CapabilityError, match="gives no log-probabilities"):
        guard_over(make_backend(Script(first=lambda partial: [])))
    rejects = Script(failing=lambda body: 400 if body.get("logprobs") else 0)
    with pytest.raises(CapabilityError, match=r"look-ahead'\): it rejects the request \(.*out of order"):
        guard_over(make_backend(rejects))
    anthropic = make_backend(Script(trailing="rejects"), "anthropic")
    assert Capability.TOKEN_TEXTS not in anthropic.capabilities
    with pytest.raises(CapabilityError, match="needs next-token probabilities, which the backend ApiBackend does not"):
        guard_over(anthropic)


def test_log_probabilities_that_stay_out_later_are_a_failed_check(make_backend: MakeBackend) -> None:
    script = Script(first=lambda partial: None if "two" in partial else [YES])
    answer = guard_over(make_backend(script)).generate("Count.")
    assert (answer.verdict.reason, answer.verdict.depth) == ("error", 2)
    assert "CheckError: the provider gives no log-probabilities" in str(answer.checks[-1].error)


def test_a_request_that_fails_is_told_as_the_providers(make_backend: MakeBackend) -> None:
    script = Script(first=lambda partial: [YES])
    backend = make_backend(script)
    guard = guard_over(backend)
    script.failing = lambda body: 500 if body.get("logprobs") else 0
    answer = guard.generate("Count.")
    assert answer.verdict.reason == "error" and isinstance(backend._handle.failure, ProviderError)


@pytest.mark.parametrize("where", ["check_finish", "finish"])
def test_the_providers_own_refusal_is_one(make_backend: MakeBackend, where: str) -> None:
    script = Script(first=lambda partial: [YES])
    guard = guard_over(make_backend(script))
    setattr(script, where, "content_filter")
    answer = guard.generate("Count.")
    assert answer.verdict.score == 1.0 and "the provider ended it: content_filter" in str(answer.checks[-1].detail)


def test_tokens_that_were_all_thoughts_are_a_failed_check(make_backend: MakeBackend) -> None:
    script = Script(first=lambda partial: [YES])
    guard = guard_over(make_backend(script))
    script.look_ahead, script.check_finish = lambda partial: None, "length"
    answer = guard.generate("Count.")
    assert "spent them on thoughts" in str(answer.checks[-1].error)


def test_calibrated_openers_are_refused(make_backend: MakeBackend) -> None:
    detector = Rethink("score", opener_ids=[3])
    with pytest.raises(ConfigError, match="calibrated as token ids, which ApiBackend does not know"):
        Guard.from_backend(make_backend(Script(first=lambda partial: [YES])), detector)


def test_a_rethink_may_be_bound_again_to_a_model_in_this_process(make_backend: MakeBackend) -> None:
    detector = Rethink("score")
    detector.bind(make_backend(Script(first=lambda partial: [YES])))
    assert detector.needs == {Capability.TOKEN_TEXTS}
    detector.bind(ScriptedBackend(["x"]))
    assert detector.needs == {Capability.NEXT_TOKEN} and detector.opener_ids


@pytest.mark.parametrize(
    ("token", "begins"),
    [
        ("Sorry", True), (" Sorry", True), ("Sorry,", True), ("Unfort", True), ("Un", True), ("抱", True),
        ("I", False), ("S", False), ("U", False), ("", False), (" ", False), ("Sure", False), ("As", False),
        ("Sorryish", False), ("Apologies", True), ("D", False), ("The", False),
    ],
)  # fmt: skip
def test_what_the_text_of_a_token_tells(token: str, begins: bool) -> None:
    assert RefusalMatcher.default().openers.begins_refusal(token) is begins


def test_what_is_told_of_tokens_is_read_with_care() -> None:
    """The written token counts although it is none of the most probable; what is no number does not count."""
    place = SimpleNamespace(token="x", logprob=-3.0, top_logprobs=[SimpleNamespace(token="y", logprob=-0.5)])
    odd = SimpleNamespace(token="z", logprob=float("nan"), top_logprobs=None)
    choice = SimpleNamespace(logprobs=SimpleNamespace(content=[place, odd]))
    assert told_tokens(choice) == ({"x": -3.0, "y": -0.5}, {})
    assert told_tokens(SimpleNamespace(logprobs=None)) is told_tokens(SimpleNamespace()) is None
    assert told_tokens(SimpleNamespace(logprobs=SimpleNamespace(content=None, top_logprobs=None))) is None
    assert first_visible([]) == {} and first_visible([{" ": 0.0}]) == {" ": 0.0}
