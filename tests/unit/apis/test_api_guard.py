"""A guard over an API: what is asked, what leaves, and when."""

from collections.abc import Callable
from typing import Any

import pytest

from anydepth import Guard
from anydepth.apis import ApiBackend, Prices
from anydepth.apis.provider import ChatTurn
from anydepth.errors import CapabilityError, ConfigError, PromptError, ProviderError
from anydepth.types import Checked, Released
from tests.unit.apis.fake_api import ANSWER, NO, YES, Script, partial_of

MakeGuard = Callable[..., Guard]
MakeBackend = Callable[..., ApiBackend]
WHOLE = "".join(ANSWER)


def refuse_from(words: int) -> Callable[[str], str]:
    """A model that refuses in a fresh turn once its answer has so many words."""
    return lambda partial: NO if len(partial.split()) >= words else YES


def scripts(kind: str, **fields: Any) -> Script:
    """OpenAI's form closes a message at the end, Anthropic's rejects it, as the current ones do."""
    return Script(trailing="closes" if kind == "openai" else "rejects", **fields)


@pytest.fixture(params=["openai", "anthropic"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_an_answer_that_nothing_halts_is_the_stream(kind: str, make_guard: MakeGuard) -> None:
    script = scripts(kind)
    answer = make_guard(script, kind).generate("Count to eight.")
    assert answer.text == WHOLE and answer.finish_reason == "stop"
    assert [check.depth for check in answer.checks] == [0, 2, 4, 6, 8, 8]  # the end of turn is checked, too
    assert {check.detail for check in answer.checks} == {YES}
    assert answer.generated_tokens == len(ANSWER) and answer.prompt_tokens == 1
    assert answer.verdict.reason == "clear" and answer.verdict.score == 0.0


def test_a_refusal_in_a_fresh_turn_halts(kind: str, make_guard: MakeGuard) -> None:
    answer = make_guard(scripts(kind, look_ahead=refuse_from(4)), kind).generate("Count to eight.")
    assert answer.text == "one two \n\nNo, thanks." and answer.finish_reason == "content_filter"
    assert answer.verdict.depth == 4 and answer.verdict.reason == "policy" and answer.verdict.score == 1.0
    assert answer.checks[-1].detail == NO
    assert [(each.start, each.stop, each.state) for each in answer.windows] == [(0, 2, "released"), (2, 4, "withheld")]


def test_a_request_that_is_refused_itself_costs_one_check_and_no_answer(kind: str, make_guard: MakeGuard) -> None:
    script = scripts(kind, look_ahead=refuse_from(0))
    answer = make_guard(script, kind).generate("Count to eight.")
    assert answer.text == "No, thanks." and answer.generated_tokens == 0
    assert len(script.checks) == 1 and not any(body.get("stream") for body in script.bodies)


@pytest.mark.parametrize("halt_at", [4, 100])
def test_no_piece_leaves_before_the_check_that_covers_it(kind: str, halt_at: int, make_guard: MakeGuard) -> None:
    script = scripts(kind, look_ahead=refuse_from(halt_at))
    gone, passed = "", 0
    for event in make_guard(script, kind).stream("Count to eight."):
        if isinstance(event, Checked) and event.check.score < 0.5:
            passed = event.check.depth
            assert partial_of(script.checks[-1]) == "".join(ANSWER[:passed])
        elif isinstance(event, Released):
            gone += event.text
            assert event.depth <= passed and "".join(ANSWER[:passed]).startswith(gone)
    assert gone == ("one two " if halt_at == 4 else WHOLE)


def test_closes_puts_the_answer_at_the_end(make_guard: MakeGuard) -> None:
    script = Script()
    guard = make_guard(script)
    guard.generate([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}])
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}]
    assert guard.backend.capability == "closes"  # pyright: ignore[reportAttributeAccessIssue]
    assert script.checks[0]["messages"] == history
    assert script.checks[1]["messages"] == [*history, {"role": "assistant", "content": "one two "}]
    assert all(body["max_tokens"] == 20 and body["temperature"] == 0 for body in script.checks)
    (stream,) = [body for body in script.bodies if body.get("stream")]
    assert stream["messages"] == history and stream["max_tokens"] == 512 and "temperature" not in stream


def test_between_puts_a_user_message_behind_it(make_guard: MakeGuard) -> None:
    script = scripts("anthropic")
    guard = make_guard(script, "anthropic", between="Please go on.")
    guard.generate([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}])
    check = script.checks[1]
    assert check["system"] == "Be brief."
    assert check["messages"] == [
        {"role": "user", "content": "Count."},
        {"role": "assistant", "content": "one two "},
        {"role": "user", "content": "Please go on."},
    ]
    assert script.checks[0]["messages"] == [{"role": "user", "content": "Count."}], "depth 0 is the request itself"


def test_an_unchanged_answer_is_not_asked_about_twice(make_guard: MakeGuard) -> None:
    """The end of the stream comes behind the last piece, whose check was made already."""
    script = Script()
    answer = make_guard(script).generate("Count to eight.")
    assert len(answer.checks) == 6 and len(script.checks) == 5


def test_an_answer_that_fills_its_budget_ends_by_its_length(kind: str, make_guard: MakeGuard) -> None:
    script = scripts(kind)
    guard = make_guard(script, kind)
    answer = guard.generate("Count to eight.", max_new_tokens=3)
    assert answer.text == "one two three " and answer.finish_reason == "length"
    assert [body["max_tokens"] for body in script.bodies if body.get("stream")] == [3]
    whole = guard.generate("Count to eight.", max_new_tokens=len(ANSWER))
    assert whole.text == WHOLE and whole.finish_reason == "stop", "the end behind the last piece was read"


def test_the_providers_own_limit_ends_an_answer_by_its_length(kind: str, make_guard: MakeGuard) -> None:
    word = {"openai": "length", "anthropic": "max_tokens"}[kind]
    assert make_guard(scripts(kind, finish=word), kind).generate("Count.").finish_reason == "length"


def test_an_answer_that_the_provider_refuses_is_halted(kind: str, make_guard: MakeGuard) -> None:
    word = {"openai": "content_filter", "anthropic": "refusal"}[kind]
    script = scripts(kind, finish=word, answer=ANSWER[:3])
    answer = make_guard(script, kind).generate("Count.")
    assert answer.halted and answer.verdict.reason == "policy"
    assert answer.text == "one two \n\nNo, thanks."
    assert answer.checks[-1].detail == f"(the provider ended it: {word}) I can't help with that."
    assert len(script.checks) == 2, "no request for a check of what the provider has refused"


def test_a_check_that_the_provider_refuses_is_a_refusal(kind: str, make_backend: MakeBackend) -> None:
    word = {"openai": "content_filter", "anthropic": "refusal"}[kind]
    backend = make_backend(scripts(kind, look_ahead=lambda _: None, check_finish=word), kind, capability="between")
    text = backend.fresh_turn((ChatTurn("user", "Count."),), "", 20, "checks")
    from anydepth.detectors import RefusalMatcher

    assert word in text and RefusalMatcher.default().is_refusal(text)


def test_an_empty_look_ahead_is_no_refusal(kind: str, make_guard: MakeGuard) -> None:
    answer = make_guard(scripts(kind, look_ahead=lambda _: None), kind).generate("Count.")
    assert answer.text == WHOLE and {check.detail for check in answer.checks} == {"(no text)"}


def test_a_look_ahead_that_spent_its_tokens_on_thoughts_is_a_failed_check(kind: str, make_guard: MakeGuard) -> None:
    word = {"openai": "length", "anthropic": "max_tokens"}[kind]
    script = scripts(kind)
    guard = make_guard(script, kind)
    script.check_finish, script.look_ahead = word, lambda _: None
    answer = guard.generate("Count.")
    assert answer.halted and answer.verdict.reason == "error" and answer.text == "No, thanks."
    assert "spent them on thoughts; switch these off" in (answer.checks[0].error or "")


def test_a_failed_check_halts_or_is_counted(kind: str, make_guard: MakeGuard) -> None:
    def failing(body: dict[str, Any]) -> bool:
        return not body.get("stream") and partial_of(body).startswith("one two three four")

    answer = make_guard(scripts(kind, failing=failing), kind).generate("Count.")
    assert answer.halted and answer.verdict.reason == "error" and answer.text == "one two \n\nNo, thanks."
    assert (answer.checks[-1].error or "").startswith("ProviderError: m at 127.0.0.1 failed with InternalServerError")
    going_on = make_guard(scripts(kind, failing=failing), kind, guard={"on_error": "open"}).generate("Count.")
    assert going_on.text == WHOLE and going_on.verdict.errors == 4


def test_under_eager_and_monitor_pieces_leave_first(make_guard: MakeGuard) -> None:
    eager = make_guard(Script(look_ahead=refuse_from(4)), guard={"release": "eager"}).generate("Count.")
    assert eager.text == "one two three four \n\nNo, thanks." and eager.leak == 4
    monitor = make_guard(Script(look_ahead=refuse_from(4)), guard={"release": "monitor"}).generate("Count.")
    assert monitor.text == WHOLE and monitor.verdict.halt and not monitor.halted


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("pieces", [0, 3, 8])
def test_a_stream_that_breaks_off_is_an_error_and_what_was_held_stays(
    kind: str, pieces: int, clean: bool, make_guard: MakeGuard
) -> None:
    events = make_guard(scripts(kind, break_after=pieces, clean_break=clean), kind).stream("Count.")
    left: list[str] = []
    with pytest.raises(ProviderError, match="broke off before the end" if clean else "failed with"):
        left.extend(event.text for event in events if isinstance(event, Released))
    assert "".join(left) == "".join(ANSWER[: pieces // 2 * 2])


def test_an_answer_without_text_is_checked_and_empty(kind: str, make_guard: MakeGuard) -> None:
    answer = make_guard(scripts(kind, answer=()), kind).generate("Count.")
    assert answer.text == "" and answer.finish_reason == "stop" and answer.generated_tokens == 0


def test_a_busy_server_is_asked_again(kind: str, make_guard: MakeGuard) -> None:
    script = scripts(kind)
    guard = make_guard(script, kind, retries=2)
    script.failures[:] = [429]
    first = len(script.requests)
    assert guard.generate("Count.").text == WHOLE
    assert script.bodies[first] == script.bodies[first + 1], "the client's own retry"


def test_a_busy_server_that_stays_busy_fails_the_check(kind: str, make_guard: MakeGuard) -> None:
    script = scripts(kind)
    guard = make_guard(script, kind, retries=1)
    script.failures[:] = [429, 429]
    answer = guard.generate("Count.")
    assert answer.text == "No, thanks." and "RateLimitError" in (answer.checks[0].error or "")


def test_a_batch_is_answered_row_by_row(kind: str, make_guard: MakeGuard) -> None:
    guard = make_guard(scripts(kind), kind)
    assert [answer.text for answer in guard.generate(["Count.", "Count again."])] == [WHOLE, WHOLE]


def test_a_finished_answer_is_scanned(kind: str, make_guard: MakeGuard) -> None:
    script = scripts(kind, look_ahead=refuse_from(4))
    result = make_guard(script, kind).scan("Count.", "un deux trois quatre cinq")
    assert [(check.depth, check.score) for check in result.checks] == [(0, 0.0), (2, 0.0), (4, 1.0), (5, 1.0)]
    assert result.verdict.halt and result.verdict.depth == 4 and result.method == "forks"
    assert not any(body.get("stream") for body in script.bodies), "nothing is generated"


def test_the_unguarded_answer_is_one_stream(kind: str, make_guard: MakeGuard) -> None:
    script = scripts(kind)
    guard = make_guard(script, kind)
    script.requests.clear()
    assert guard.unguarded("Count.") == WHOLE and len(script.requests) == 1


def test_the_report_counts_requests_tokens_and_money(make_guard: MakeGuard) -> None:
    guard = make_guard(Script(), prices=Prices(prompt=2.0, completion=10.0))
    guard.generate("Count.")
    report = guard.backend.report()  # pyright: ignore[reportAttributeAccessIssue]
    assert {key: report[key] for key in ("provider", "host", "model", "capability", "between", "unit")} == {
        "provider": "openai",
        "host": "127.0.0.1",
        "model": "m",
        "capability": "closes",
        "between": None,
        "unit": "streamed piece",
    }
    assert report["answers"] == {
        "requests": 1,
        "requests_without_usage": 0,
        "prompt_tokens": 50,
        "completion_tokens": 9,
        "cost": pytest.approx((50 * 2 + 9 * 10) / 1e6),
    }
    assert report["checks"] == {
        "requests": 5,
        "requests_without_usage": 0,
        "prompt_tokens": 500,
        "completion_tokens": 35,
        "cost": pytest.approx((500 * 2 + 35 * 10) / 1e6),
    }
    assert report["trials"]["requests"] == 3 and report["trials"]["prompt_tokens"] == 300


def test_the_report_names_the_text_between_and_counts_cached_tokens(make_guard: MakeGuard) -> None:
    guard = make_guard(scripts("anthropic"), "anthropic")
    guard.generate("Count.")
    report = guard.backend.report()  # pyright: ignore[reportAttributeAccessIssue]
    assert report["capability"] == "between" and report["between"] == "Continue." and report["provider"] == "anthropic"
    assert report["checks"]["prompt_tokens"] == 500 and report["checks"]["cost"] is None
    assert report["answers"]["prompt_tokens"] == 50 and report["answers"]["completion_tokens"] == 9
    assert report["trials"]["requests"] == 2 and report["trials"]["requests_without_usage"] == 1  # the rejected one


def test_the_report_says_of_how_many_requests_the_use_is_not_known(make_guard: MakeGuard) -> None:
    guard = make_guard(Script(look_ahead=refuse_from(4)))
    guard.generate("Count.")
    report = guard.backend.report()  # pyright: ignore[reportAttributeAccessIssue]
    assert report["answers"]["requests_without_usage"] == 1, "the stream was closed at the halt"
    assert report["checks"]["requests_without_usage"] == 0


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf"), "3", True])
def test_a_price_that_there_cannot_be_is_refused(price: Any) -> None:
    with pytest.raises(ConfigError, match=r"the price completion is .* at least 0 per million tokens"):
        Prices(prompt=1.0, completion=price)


@pytest.mark.parametrize(
    ("kind_of", "extra", "named"),
    [
        ("openai", {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}, "tool_calls"),
        ("openai", {"function_call": {"name": "f", "arguments": ""}}, "function_call"),
        ("anthropic", {"type": "tool_use", "id": "c", "name": "f", "input": {}}, "'tool_use'"),
    ],
)
def test_a_tool_call_in_an_answer_is_refused_by_name(
    kind_of: str, extra: dict[str, Any], named: str, make_guard: MakeGuard
) -> None:
    guard = make_guard(scripts(kind_of, extra_deltas=[extra]), kind_of)
    with pytest.raises(ProviderError, match=f"answers with .*{named}.*tool calls cannot be guarded"):
        guard.generate("Count.")


@pytest.mark.parametrize(
    ("kind_of", "extra"),
    [("openai", {"reasoning_content": "hm"}), ("anthropic", {"type": "thinking", "thinking": "hm", "signature": ""})],
)
def test_thoughts_do_not_leave(kind_of: str, extra: dict[str, Any], make_guard: MakeGuard) -> None:
    assert make_guard(scripts(kind_of, extra_deltas=[extra]), kind_of).generate("Count.").text == WHOLE


def test_an_end_of_an_unknown_kind_is_refused(kind: str, make_guard: MakeGuard) -> None:
    with pytest.raises(ProviderError, match="ended its text with 'pause', which cannot be guarded; what can is"):
        make_guard(scripts(kind, finish="pause"), kind).generate("Count.")


@pytest.mark.parametrize(
    ("messages", "options", "match"),
    [
        ("Count.", {"tools": [{"type": "function"}]}, "tools cannot be guarded over an API"),
        ("Count.", {"prefill": "one"}, "a prefill cannot be continued over this API; leave it out, or use .* 'raw'"),
        ([{"role": "tool", "content": "3"}], {}, "message 0 has the role 'tool'"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": [{}]}] * 2,
            {},
            "message 1 has tool_calls; over an API only role and content are guarded",
        ),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "only text parts can be guarded"),
        ("", {}, "the prompt is empty"),
    ],
)
def test_what_cannot_be_guarded_is_refused_before_a_request(
    kind: str, messages: Any, options: dict[str, Any], match: str, make_guard: MakeGuard
) -> None:
    script = scripts(kind)
    guard = make_guard(script, kind)
    script.requests.clear()
    with pytest.raises(PromptError, match=match):
        guard.generate(messages, **options)
    assert not script.requests


def test_instructions_behind_messages_are_refused_where_there_is_one_field_for_them(make_guard: MakeGuard) -> None:
    late = [{"role": "user", "content": "Count."}, {"role": "system", "content": "Be brief."}]
    with pytest.raises(PromptError, match="a system message stands behind others"):
        make_guard(scripts("anthropic"), "anthropic").generate(late)
    with pytest.raises(PromptError, match="instructions only; add a user message"):
        make_guard(scripts("anthropic"), "anthropic").generate([{"role": "system", "content": "Be brief."}])


def test_sampling_options_go_to_the_answer_and_not_to_checks(kind: str, make_guard: MakeGuard) -> None:
    script = scripts(kind)
    make_guard(script, kind, request={"metadata": {"user_id": "u"}}).generate("Count.", temperature=0.7, top_p=0.9)
    (stream,) = [body for body in script.bodies if body.get("stream")]
    assert (stream["temperature"], stream["top_p"]) == (0.7, 0.9)
    assert all(body.get("temperature") == (0 if kind == "openai" else None) for body in script.checks)
    assert not any("top_p" in body for body in script.checks)
    assert all(body["metadata"] == {"user_id": "u"} for body in script.bodies)


@pytest.mark.parametrize("greedy", [True, False])
def test_whether_checks_are_greedy_can_be_said(kind: str, greedy: bool, make_guard: MakeGuard) -> None:
    script = scripts(kind)
    guard = make_guard(script, kind, greedy=greedy)
    guard.generate("Count.")
    assert script.checks and all(body.get("temperature") == (0 if greedy else None) for body in script.checks)
    assert guard.backend.report()["greedy"] is greedy  # pyright: ignore[reportAttributeAccessIssue]


def test_a_seed_is_passed_on_where_there_is_one(make_guard: MakeGuard) -> None:
    script = Script()
    make_guard(script).generate("Count.", seed=3)
    assert [body["seed"] for body in script.bodies if body.get("stream")] == [3]
    with pytest.raises(ConfigError, match="seed is 3, which anthropic does not take"):
        make_guard(scripts("anthropic"), "anthropic").generate("Count.", seed=3)


@pytest.mark.parametrize("option", ["do_sample", "n", "tools", "response_format"])
def test_an_option_that_cannot_be_passed_on_is_refused(kind: str, option: str, make_backend: MakeBackend) -> None:
    backend = make_backend(scripts(kind), kind)
    with pytest.raises(ConfigError, match=f"{option} cannot be passed on; what can is .*temperature"):
        backend.open([backend.template.prompt("Count.")], max_new_tokens=5, **{option: 1})


def test_hidden_states_are_refused_by_name(make_backend: MakeBackend) -> None:
    from anydepth import Rethink
    from anydepth.backends import Site

    backend = make_backend(Script())
    with pytest.raises(CapabilityError, match="needs next-token probabilities, which the backend ApiBackend does not"):
        Guard.from_backend(make_backend(scripts("anthropic"), "anthropic"), Rethink("score"))
    with pytest.raises(CapabilityError, match="an API gives no hidden states"):
        backend.read_batch([], [], tokens=[0])
    session = backend.open([backend.template.prompt("Count.")], max_new_tokens=5)
    for call in (lambda: session.hidden_states([], []), lambda: session.next_token_logprobs([])):
        with pytest.raises(CapabilityError, match="use Rethink"):
            call()
    with pytest.raises(CapabilityError, match="Safety Tokens of an API are not known"):
        _ = backend.header
    with pytest.raises(Exception, match=r"site 3\.output cannot be read over an API"):
        backend.check_site(Site(3, "output"))


def test_bare_token_ids_are_refused(make_backend: MakeBackend) -> None:
    from anydepth.templates import Prompt

    backend = make_backend(Script())
    with pytest.raises(ConfigError, match="7 is a bare number"):
        backend.decode_text([7])
    with pytest.raises(ConfigError, match="the prompt has token ids"):
        backend.open([Prompt((1, 2))], max_new_tokens=5)
    with pytest.raises(PromptError, match="the answer to replay is empty"):
        backend.replay(backend.template.prompt("Count."), [])
    with pytest.raises(PromptError, match="there is no prompt"):
        backend.open([], max_new_tokens=5)
