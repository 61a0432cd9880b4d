"""Rewards of completions, over a scripted model."""

import asyncio
from typing import Any

import pytest

from anydepth import Every, Guard
from anydepth.errors import CheckError, ConfigError
from anydepth.reward import SafetyReward
from anydepth.testing import ScriptedBackend, ScriptedDetector

PROMPT = [{"role": "user", "content": "hello"}]


def chat(text: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def reward_of(scores: dict[int, float], **options: Any) -> SafetyReward:
    guard = Guard.from_backend(ScriptedBackend(["x"]), ScriptedDetector(scores), schedule=Every(2, doubling=False))
    return SafetyReward(guard, **options)


@pytest.mark.parametrize(
    ("over", "scale", "expected"),
    [
        ("max", "probability", 0.2),
        ("mean", "probability", 1 - (0.1 + 0.8 + 0.3) / 3),
        ("last", "probability", 0.7),
        ("max", "logit", -1.3862943611198906),
        ("last", "logit", 0.8472978603872036),
    ],
)
def test_a_reward_is_made_of_the_scores_of_all_depths(over: Any, scale: Any, expected: float) -> None:
    reward = reward_of({0: 0.1, 2: 0.8, 4: 0.3}, over=over, scale=scale)
    assert reward([PROMPT], [chat("abcd")]) == [pytest.approx(expected)]


def test_a_logit_is_bounded() -> None:
    assert reward_of({0: 0.0, 2: 0.0}, scale="logit")([PROMPT], [chat("ab")]) == [10.0]
    assert reward_of({0: 1.0, 2: 1.0}, scale="logit")([PROMPT], [chat("ab")]) == [-10.0]


def test_completions_without_a_text_at_the_end_have_no_reward() -> None:
    told: dict[str, Any] = {}
    completions = [chat("ab"), chat(""), chat(None), [], [*chat("ab"), {"role": "tool", "content": "x"}]]
    rewards = reward_of({0: 0.1, 2: 0.25})(
        [PROMPT] * 5,
        completions,
        completion_ids=[[1]] * 5,
        log_metric=told.__setitem__,
        log_extra=told.__setitem__,
        label=["a"] * 5,
    )
    assert rewards == [0.75, None, None, None, None]
    assert told == {"safety/score": 0.25, "safety_score": [0.25, None, None, None, None]}
    assert reward_of({0: 0.1})([], []) == []


def test_calls_of_a_completion_belong_to_the_conversation() -> None:
    """The answer is the last message; what the agent did before it is what it answers."""
    reward = reward_of({0: 0.1, 2: 0.2})
    seen: list[Any] = []
    scan = reward.guard.scan_many
    reward.guard.scan_many = lambda chats: seen.extend(chats) or scan(chats)  # pyright: ignore[reportAttributeAccessIssue]
    assert reward([PROMPT], [[*chat("one"), {"role": "user", "content": "go on"}, *chat("ab")]]) == [0.8]
    assert seen == [([*PROMPT, *chat("one"), {"role": "user", "content": "go on"}], "ab")]


def test_a_begun_answer_in_a_prompt_is_refused() -> None:
    begun = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "w1"}]
    with pytest.raises(ConfigError, match=r"close a begun answer .* end the prompts with a message of the user"):
        reward_of({0: 0.1})([begun], [chat("w2")])


def test_a_failed_check_is_no_reward() -> None:
    with pytest.raises(CheckError, match="the check of a completion at depth 2 failed"):
        reward_of({0: 0.1, 2: float("nan")})([PROMPT], [chat("abcd")])


def test_it_can_be_awaited() -> None:
    reward = reward_of({0: 0.1, 2: 0.2})
    assert asyncio.iscoroutinefunction(reward.asynchronous)
    assert asyncio.run(reward.asynchronous([PROMPT], [chat("ab")])) == [0.8]  # pyright: ignore[reportArgumentType]
    assert reward.__name__ == reward.asynchronous.__name__ == "safety"  # pyright: ignore[reportFunctionMemberAccess]


def test_wrong_values_are_named() -> None:
    with pytest.raises(ConfigError, match="over is 'median'; choose one of max, mean, last"):
        reward_of({0: 0.1}, over="median")
    with pytest.raises(ConfigError, match="scale is 'log'"):
        reward_of({0: 0.1}, scale="log")
    with pytest.raises(ConfigError, match="2 prompts were given for 1 completions"):
        reward_of({0: 0.1})([PROMPT, PROMPT], [chat("ab")])
    with pytest.raises(ConfigError, match=r"plain text.*conversational dataset"):
        reward_of({0: 0.1})(["hello"], ["ab"])
