"""The guarantees of the README, each as a test that every host has to pass: `host` is a fixture of who runs them.

`test_promises.py` beside this file runs them on the library and the server, `tests/vllm/test_promises.py` on vLLM.
"""

from typing import Any

import pytest

from anydepth.schedule import Every, scheduled_depths
from tests.contract.hosts import REFUSAL, Host, Seen

REQUEST = "w3 w10 w9"
PREFILL = " ".join(f"w{n}" for n in range(20, 50))
PREFILLED = 30
TEN: dict[str, Any] = {"interval": 10}


def expected(prefill: int, generated: int, *, inside: bool = True) -> list[int]:
    """Depths that are checked: 0, those inside the prefill, its end, then those of the answer."""
    schedule = Every(10)
    first = scheduled_depths(schedule, prefill) if inside else [0, prefill]
    return [*dict.fromkeys([*first, *(prefill + depth for depth in scheduled_depths(schedule, generated))])]


def middling(host: Host, **options: Any) -> tuple[Seen, float]:
    """An answer that nothing halts, and a threshold that its scores behind depth 0 reach, but not at once."""
    seen = host.answer(REQUEST, guard=TEN, **options)
    start, later = seen.scores[0], {depth: score for depth, score in seen.scores.items() if depth > 2}
    top = max(later.values())
    early = max([start, *(seen.scores[depth] for depth in seen.depths if 0 < depth <= 2)])
    assert top > early + 1e-3, "the tiny model's scores do not rise; plant another probe"
    return seen, (top + early) / 2


@pytest.mark.parametrize("tokens", [7, 20])
def test_an_unhalted_answer_is_the_bare_models(host: Host, tokens: int) -> None:
    seen = host.answer(REQUEST, tokens=tokens, guard=TEN)
    assert seen.text == host.bare(REQUEST, tokens=tokens)
    assert not seen.halted and seen.reason == "clear" and seen.generated == tokens


def test_an_unhalted_answer_to_a_prefill_is_the_bare_models(host: Host) -> None:
    assert host.answer(REQUEST, prefill=PREFILL, guard=TEN).text == host.bare(REQUEST, prefill=PREFILL)


def test_a_prefill_is_checked_inside(host: Host) -> None:
    seen = host.answer(REQUEST, prefill=PREFILL, guard=TEN)
    assert seen.prefill == PREFILLED
    assert seen.depths == expected(PREFILLED, 20)
    assert not any(error for _, error in seen.checks)


def test_harm_inside_a_prefill_halts_before_a_token_is_generated(host: Host) -> None:
    seen = host.answer(REQUEST, prefill=PREFILL, guard=TEN)
    inside = {depth: score for depth, score in seen.scores.items() if 0 < depth < PREFILLED}
    ends = max(seen.scores[0], seen.scores[PREFILLED])
    assert max(inside.values()) > ends + 1e-3, "the tiny model's scores do not stand out inside; take another prefill"
    halfway = (max(inside.values()) + ends) / 2
    halted = host.answer(REQUEST, prefill=PREFILL, guard={**TEN, "policy": {"name": "threshold", "threshold": halfway}})
    assert halted.halted and halted.text == REFUSAL and halted.reason == "policy"
    assert not any(state == "released" for *_, state in halted.windows)


def test_a_prefill_is_checked_at_its_end_only_where_the_operator_says_so(host: Host) -> None:
    seen = host.answer(REQUEST, prefill=PREFILL, guard={**TEN, "prefill": "end"})
    assert seen.depths == expected(PREFILLED, 20, inside=False)


@pytest.mark.parametrize("tokens", [1, 13])
def test_the_last_window_is_checked_however_short(host: Host, tokens: int) -> None:
    seen = host.answer(REQUEST, tokens=tokens, guard=TEN)
    assert seen.depths == expected(0, tokens) and seen.depths[-1] == tokens


def test_every_token_is_accounted_for(host: Host) -> None:
    _, threshold = middling(host)
    for policy in (1.0, threshold):
        seen = host.answer(REQUEST, guard={**TEN, "policy": {"name": "threshold", "threshold": policy}})
        edges = [(start, stop) for start, stop, *_ in seen.windows]
        assert [start for start, _ in edges] == [0, *(stop for _, stop in edges[:-1])]
        assert edges[-1][1] == seen.generated
        assert all(at is not None and at >= stop for _, stop, at, _ in seen.windows)


def test_no_token_leaves_before_a_check_that_covers_it(host: Host) -> None:
    whole, threshold = middling(host)
    assert whole.left, "nothing was seen to leave"
    assert all(gone <= deepest for gone, deepest in whole.left)
    seen = host.answer(REQUEST, guard={**TEN, "policy": {"name": "threshold", "threshold": threshold}})
    halt = next(depth for depth, score in seen.scores.items() if score >= threshold)
    gone = sum(stop - start for start, stop, _, state in seen.windows if state == "released")
    before = [depth for depth in seen.depths if depth < halt]
    assert seen.halted and gone == before[-1]
    released = host.bare(REQUEST, tokens=gone)
    assert seen.text == f"{released}\n\n{REFUSAL}"
    assert whole.text.startswith(released)


def test_a_failed_check_halts(host: Host) -> None:
    with host.failing_checks():
        seen = host.answer(REQUEST, guard=TEN)
    assert seen.halted and seen.reason == "error" and seen.text == REFUSAL
    assert [depth for depth, error in seen.checks if error is None] == [0]
    assert not any(state == "released" for *_, state in seen.windows)


def test_a_failed_check_inside_a_prefill_halts(host: Host) -> None:
    with host.failing_checks():
        seen = host.answer(REQUEST, prefill=PREFILL, guard=TEN)
    assert seen.halted and seen.reason == "error" and seen.text == REFUSAL and not seen.generated


def test_a_failed_check_is_counted_where_the_operator_lets_it_go_on(host: Host) -> None:
    with host.failing_checks():
        seen = host.answer(REQUEST, guard={**TEN, "on_error": "open"})
    assert not seen.halted and seen.text == host.bare(REQUEST)
    assert all(error for depth, error in seen.checks if depth) and len(seen.checks) == len(expected(0, 20))


def test_an_audit_that_cannot_be_written_halts(host: Host) -> None:
    if not host.audits:
        pytest.skip("this host keeps no audit trail")
    with host.failing_audit():
        seen = host.answer(REQUEST, guard=TEN)
    assert seen.halted and seen.text == REFUSAL and not seen.left
    assert seen.generated is None, "there is a record of it after all"


def test_under_eager_tokens_leave_first_and_a_halt_ends_them(host: Host) -> None:
    _, threshold = middling(host)
    policy = {"name": "threshold", "threshold": threshold}
    seen = host.answer(REQUEST, guard={**TEN, "release": "eager", "policy": policy})
    assert seen.halted and seen.text.endswith(REFUSAL)
    assert all(state == "released" for *_, state in seen.windows)


def test_under_monitor_nothing_halts(host: Host) -> None:
    _, threshold = middling(host)
    policy = {"name": "threshold", "threshold": threshold}
    seen = host.answer(REQUEST, guard={**TEN, "release": "monitor", "policy": policy})
    assert not seen.halted and seen.text == host.bare(REQUEST) and seen.reason == "policy"
