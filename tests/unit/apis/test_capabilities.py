"""Which shape of a check a provider takes, found out or named, and who is refused."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import anthropic
import openai
import pytest

from anydepth import Guard, Rethink
from anydepth.apis import ApiBackend
from anydepth.apis.self_test import CUT, TRIAL_TOKENS, counted, judge
from anydepth.errors import CapabilityError, CheckError, ConfigError, ProviderError
from anydepth.schedule import Every
from anydepth.templates import ChatTemplate
from anydepth.testing import ScriptedBackend
from tests.unit.apis.fake_api import ANSWER, NO, YES, Script

MakeGuard = Callable[..., Guard]
MakeBackend = Callable[..., ApiBackend]


@pytest.mark.parametrize(
    "reply",
    [
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
        " **Monday**, Tuesday, Wednesday",
        "Days of the week: Monday, Tuesday",
        "Sorry, here is the whole list: Monday, Tuesday",
    ],
)
def test_a_list_that_begins_again_is_a_new_turn(reply: str) -> None:
    assert judge(reply) == "new turn"


@pytest.mark.parametrize("reply", ["day, Thursday, Friday", "day", " Day, Thursday", "...day, Thursday, Monday"])
def test_the_rest_of_the_cut_word_is_a_continuation(reply: str) -> None:
    assert judge(reply) == "continued"


@pytest.mark.parametrize(
    "reply", ["", "Thursday, Friday", "Wednesday, Thursday", "1, 2, 3", f"{CUT}day, Thursday", "x" * 90 + "Monday"]
)
def test_everything_else_shows_nothing(reply: str) -> None:
    assert judge(reply) == "unclear"


@pytest.mark.parametrize(
    ("kind", "trailing", "found", "trials"),
    [
        ("openai", "closes", "closes", 3),
        ("openai", "rejects", "between", 2),
        ("anthropic", "rejects", "between", 2),
        ("anthropic", "closes", "closes", 3),
    ],
)
def test_the_trial_finds_the_shape(
    kind: str, trailing: str, found: str, trials: int, make_backend: MakeBackend
) -> None:
    script = Script(trailing=trailing)
    backend = make_backend(script, kind)
    assert backend.capability == "auto"
    Guard.from_backend(backend, Rethink())
    assert backend.capability == found
    assert len(script.trials) == len(script.requests) == trials
    assert script.trials[0]["messages"][-1] == {"role": "assistant", "content": CUT}
    Guard.from_backend(backend, Rethink())
    assert len(script.requests) == trials, "one trial a backend"


def told_by(wrapped: int, *, answer: str = "continues", each: int = 1) -> Script:
    """A provider that tells its tokens: one a word, and `wrapped` round a message of the assistant."""

    def prompt_tokens(body: dict[str, Any]) -> int:
        words = sum(len(message["content"].split()) for message in body["messages"]) * each
        return 20 + words + wrapped * (body["messages"][-1]["role"] == "assistant")

    return Script(trailing=answer, prompt_tokens=prompt_tokens)


@pytest.mark.parametrize("wrapped", [2, 5, 8])
@pytest.mark.parametrize("answer", ["unclear", "closes"])
def test_tokens_round_a_message_show_that_it_is_closed(wrapped: int, answer: str, make_backend: MakeBackend) -> None:
    """Whatever the reply: a model may complete the cut word in a fresh turn of its own."""
    script = told_by(wrapped, answer=answer)
    backend = make_backend(script)
    Guard.from_backend(backend, Rethink())
    assert backend.capability == "closes" and len(script.trials) == 5
    assert [body["max_tokens"] for body in script.trials] == [TRIAL_TOKENS, 1, 1, 1, 1]


@pytest.mark.parametrize("owner", ["vllm", "somebody", None])
def test_a_continued_word_is_taken_for_a_new_turn_of_vllm_alone(owner: str | None, make_backend: MakeBackend) -> None:
    """Some templates write empty thoughts before a last message, closed or not: these are tokens round it as well."""
    script = told_by(4, answer="continues")
    script.owner = owner
    backend = make_backend(script)
    with nullcontext() if owner == "vllm" else pytest.raises(CapabilityError, match="does not show whether a new turn"):
        Guard.from_backend(backend, Rethink())
    assert backend.capability == ("closes" if owner == "vllm" else "auto")


@pytest.mark.parametrize("wrapped", [0, -3])
def test_a_message_without_tokens_round_it_is_continued(wrapped: int, make_guard: MakeGuard) -> None:
    """Though the reply looks like a new turn: a weak model may begin anew inside a message that is continued."""
    with pytest.raises(CapabilityError, match="continues an assistant message at the end instead"):
        make_guard(told_by(wrapped, answer="closes"))


@pytest.mark.parametrize("wrapped", [1, 40])
@pytest.mark.parametrize(("answer", "taken"), [("closes", True), ("continues", False)])
def test_where_the_count_shows_nothing_the_reply_decides(
    wrapped: int, answer: str, taken: bool, make_guard: MakeGuard
) -> None:
    with nullcontext() if taken else pytest.raises(CapabilityError, match="continues an assistant message"):
        make_guard(told_by(wrapped, answer=answer))


@pytest.mark.parametrize("counts", [[None], [20, 20], [20, None], [20, 41, 57, 80], [60, 41], [20, 41, 42]])
def test_a_count_that_is_not_on_a_line_shows_nothing(counts: list[int | None]) -> None:
    left = iter(counts)
    assert counted(lambda _turns: next(left)) == "unclear"
    assert next(left, "none left") == "none left", "no request more than is needed"


def test_a_provider_that_continues_is_refused_with_the_reason(make_guard: MakeGuard) -> None:
    with pytest.raises(
        CapabilityError,
        match=r"continues an assistant message at the end instead .* wrote 'day, Thursday, Friday'; .*'between' puts",
    ):
        make_guard(Script(trailing="continues"))


def test_a_reply_that_shows_nothing_is_refused_with_the_remedy(make_guard: MakeGuard) -> None:
    with pytest.raises(CapabilityError, match=r"does not show whether a new turn began.*'closes' overrules this test"):
        make_guard(Script(trailing="unclear"))


def test_a_provider_that_rejects_everything_is_refused(make_guard: MakeGuard) -> None:
    script = Script(failures=[400, 422])
    with pytest.raises(CapabilityError, match=r"with and without an assistant message.*come back later.*greedy=False"):
        make_guard(script)
    assert len(script.requests) == 2


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_another_error_is_no_answer_to_the_question(status: int, make_guard: MakeGuard) -> None:
    script = Script(failures=[status])
    with pytest.raises(ProviderError, match=r"m at 127.0.0.1 failed with"):
        make_guard(script)
    assert len(script.requests) == 1


def test_a_trial_without_text_is_refused(make_guard: MakeGuard) -> None:
    with pytest.raises(CapabilityError, match="empty reply: the model ends a fresh turn at once"):
        make_guard(Script(trailing="rejects", trial=""))
    with pytest.raises(CapabilityError, match="does not show"):
        make_guard(Script(trial=""))
    with pytest.raises(CapabilityError, match=r"trial check failed: .* spent them on thoughts"):
        make_guard(Script(trial="", check_finish="length"))


def test_a_named_capability_is_tried_and_not_judged(make_guard: MakeGuard, caplog: pytest.LogCaptureFixture) -> None:
    make_guard(Script(trailing="unclear"), capability="closes")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        guard = make_guard(Script(trailing="continues"), capability="closes")
    assert guard.generate("Count.").text == "".join(ANSWER)
    assert "'closes' was named, but a cut answer was continued with 'day" in caplog.text


def test_a_named_capability_that_is_rejected_is_refused(make_guard: MakeGuard) -> None:
    with pytest.raises(CapabilityError, match=r"capability 'closes' does not work: .*must end with a user message"):
        make_guard(Script(trailing="rejects"), "anthropic", capability="closes")
    make_guard(Script(trailing="continues"), capability="between")


def test_a_check_before_the_trial_is_a_failed_check(make_backend: MakeBackend) -> None:
    with pytest.raises(CheckError, match=r"capability is not known yet; call prove\(\)"):
        make_backend(Script()).fresh_turn((), "", 20, "checks")


# -- a rendered prompt ---------------------------------------------------------------------------------------------


@pytest.fixture
def chat() -> ChatTemplate:
    return ScriptedBackend(["x"]).template


def spelled(chat: ChatTemplate, body: dict[str, Any]) -> str:
    return chat.words(body["prompt"])


def test_raw_sends_the_safety_tokens_as_ids(chat: ChatTemplate, make_guard: MakeGuard) -> None:
    script = Script(look_ahead=lambda prompt: YES)
    guard = make_guard(script, capability="raw", template=chat)
    script.requests.clear()
    assert guard.generate("Count.").text == "".join(ANSWER)
    assert {path for path, _ in script.requests} == {"/v1/completions"}
    asked = [spelled(chat, body) for body in script.bodies]
    opening = "<|user|>Count.<|end|><|assistant|>"
    assert asked[:3] == [opening, opening, f"{opening}one two <|end|><|assistant|>"]
    assert [bool(body.get("stream")) for body in script.bodies[:3]] == [False, True, False]
    assert script.bodies[2]["max_tokens"] == 20 and script.bodies[2]["temperature"] == 0
    assert guard.backend.header == chat.header


def test_raw_halts_on_a_refusal(chat: ChatTemplate, make_guard: MakeGuard) -> None:
    def reply(prompt: list[int]) -> str:
        return NO if "four" in chat.words(prompt) else YES

    answer = make_guard(Script(look_ahead=reply), capability="raw", template=chat).generate("Count.")
    assert answer.text == "one two \n\nNo, thanks." and answer.verdict.depth == 4


def test_raw_continues_a_prefill_and_checks_its_end(chat: ChatTemplate, make_guard: MakeGuard) -> None:
    script = Script(look_ahead=lambda prompt: YES)
    guard = make_guard(script, capability="raw", template=chat)
    script.requests.clear()
    answer = guard.generate("Count.", prefill="minus one zero ")
    assert answer.text == "".join(ANSWER) and answer.prefill_tokens == 4
    assert [check.depth for check in answer.checks] == [0, 4, 6, 8, 10, 12, 12]
    opening = "<|user|>Count.<|end|><|assistant|>"
    asked = [spelled(chat, body) for body in script.bodies]
    assert asked[:4] == [
        opening,
        f"{opening}minus one zero <|end|><|assistant|>",
        f"{opening}minus one zero ",
        f"{opening}minus one zero one two <|end|><|assistant|>",
    ]


def test_raw_stands_or_falls_with_its_trial(chat: ChatTemplate, make_guard: MakeGuard) -> None:
    with pytest.raises(CapabilityError, match=r"capability 'raw' does not work: .*come back later; name another"):
        make_guard(Script(failures=[400]), capability="raw", template=chat)
    with pytest.raises(CapabilityError, match="empty reply"):
        make_guard(Script(look_ahead=lambda prompt: ""), capability="raw", template=chat)


# -- construction --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"capability": "merge"}, "capability is 'merge'; choose one of auto, closes, between, raw"),
        ({"between": "  "}, "between is '  '; give the text"),
        ({"capability": "raw"}, "'raw' and template go together"),
        ({"request": {"tools": [], "n": 2}}, "request has n, tools, which the guard sets itself or cannot guard"),
        ({"request": {"extra_body": {"tools": []}}}, "request has tools"),
        ({"limit_field": "max"}, "limit_field is 'max'; choose max_tokens or max_completion_tokens"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], match: str, make_backend: MakeBackend) -> None:
    with pytest.raises(ConfigError, match=match):
        make_backend(Script(), **options)


def test_a_template_goes_with_raw_only_and_raw_with_completions(chat: ChatTemplate, make_backend: MakeBackend) -> None:
    with pytest.raises(ConfigError, match="'raw' and template go together"):
        make_backend(Script(), template=chat)
    with pytest.raises(ConfigError, match="needs a completions endpoint, which Anthropic does not have"):
        make_backend(Script(), "anthropic", capability="raw", template=chat)


@pytest.mark.parametrize(
    "client", [openai.AsyncOpenAI(api_key="none"), anthropic.AsyncAnthropic(api_key="none"), "http://127.0.0.1", None]
)
def test_another_client_is_refused(client: Any) -> None:
    with pytest.raises(ConfigError, match=f"client is a {type(client).__name__}; give an openai.OpenAI or an"):
        ApiBackend(client, "m")


def test_a_model_without_a_name_is_refused(make_backend: MakeBackend) -> None:
    with pytest.raises(ConfigError, match="model is ''; give its name"):
        ApiBackend(openai.OpenAI(api_key="none"), "")


def test_the_limit_has_the_name_that_the_host_takes() -> None:
    """OpenAI's own host refuses `max_tokens` for models that think; no request is made here."""
    from anydepth.apis.openai_client import OpenAIClient

    own = OpenAIClient(openai.OpenAI(api_key="none", base_url="https://api.openai.com/v1"), "m")
    other = OpenAIClient(openai.OpenAI(api_key="none", base_url="http://127.0.0.1:1/v1"), "m")
    assert (own._limit, other._limit) == ("max_completion_tokens", "max_tokens")


def test_the_named_limit_and_no_usage_in_streams_are_sent(make_guard: MakeGuard) -> None:
    script = Script()
    guard = make_guard(script, limit_field="max_completion_tokens", stream_usage=False)
    guard.generate("Count.", max_new_tokens=100)
    (stream,) = [body for body in script.bodies if body.get("stream")]
    assert stream["max_completion_tokens"] == 100 and "max_tokens" not in stream and "stream_options" not in stream
    report = guard.backend.report()  # pyright: ignore[reportAttributeAccessIssue]
    assert report["answers"]["requests_without_usage"] == 1


def test_the_identity_names_the_host(make_backend: MakeBackend) -> None:
    identity = make_backend(Script()).identity
    assert (identity.name, identity.model_type, identity.fingerprint) == ("m", "api", "openai:127.0.0.1/m")


def test_a_sparser_schedule_asks_less(make_guard: MakeGuard) -> None:
    script = Script()
    make_guard(script, guard={"schedule": Every(50, doubling=False)}).generate("Count.")
    assert len(script.checks) == 2  # depth 0 and the end
