"""The responses that the server writes."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from anydepth.audit.answer import check_record, number
from anydepth.config import GuardConfig
from anydepth.policy import policy_record
from anydepth.server.answer.compose import End
from anydepth.types import Answer, CheckResult, Verdict


class _Reply(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorDetail(_Reply):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(_Reply):
    """The body of every error."""

    error: ErrorDetail


class GuardReport(_Reply):
    """The `anydepth` object of an answer.

    Attributes:
        halted: True if the guard cut the answer.
        would_halt: True if the policy tripped; differs from `halted` under `monitor` only.
        depth: Depth of the deciding check, or of the highest score.
        score: Its score; null if the check failed.
        reason: `policy`, `error` or `clear`.
    """

    halted: bool
    would_halt: bool
    depth: int
    score: float | None
    reason: str
    policy: dict[str, Any]
    release: str
    checks: int
    failed_checks: int
    released_tokens: int
    withheld_tokens: int
    leak_tokens: int


class Usage(_Reply):
    """Token counts: the prefill belongs to the prompt, withheld tokens to the completion."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatChoice(_Reply):
    """One answer of a chat."""

    index: int
    message: dict[str, Any]
    finish_reason: str
    logprobs: None = None
    anydepth: GuardReport


class ChatReply(_Reply):
    """`chat.completion`; a stream has `chat.completion.chunk` objects instead."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(_Reply):
    """One plain completion."""

    index: int
    text: str
    finish_reason: str
    logprobs: None = None
    anydepth: GuardReport


class TextReply(_Reply):
    """`text_completion`, in a stream as well."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ScanReport(_Reply):
    """The `anydepth` object of a scanned conversation."""

    depth: int
    score: float | None
    reason: str
    policy: dict[str, Any]
    method: str
    notes: list[str]


class ModerationResult(_Reply):
    """The result of one input."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    anydepth: ScanReport


class ModerationReply(_Reply):
    """The results of all inputs, in order."""

    id: str
    model: str
    results: list[ModerationResult]


class ModelCard(_Reply):
    """A model that is served."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "anydepth"
    max_model_len: int | None = None


class ModelList(_Reply):
    """All models that are served."""

    object: str = "list"
    data: list[ModelCard]


class Health(_Reply):
    """Whether the process works (`/healthz`) or takes requests (`/readyz`)."""

    status: str


def guard_report(end: End, guard: GuardConfig, checks: Sequence[CheckResult] | None = None) -> dict[str, Any]:
    """The `anydepth` object of an answer; every check only where the client may see them."""
    answer, verdict = end.answer, end.answer.verdict
    report: dict[str, Any] = {
        "halted": end.finish_reason == "content_filter",
        "would_halt": verdict.halt,
        **_decision(verdict),
        "policy": policy_record(guard.policy),
        "release": guard.release,
        "checks": len(answer.checks),
        "failed_checks": verdict.errors,
        "released_tokens": len(answer.token_ids),
        "withheld_tokens": max(0, answer.generated_tokens - len(answer.token_ids)),
        "leak_tokens": answer.leak,
    }
    if checks is not None:
        report["timeline"] = [check_record(check) for check in checks]
    return report


def _decision(verdict: Verdict) -> dict[str, Any]:
    return {"depth": verdict.depth, "score": number(verdict.score), "reason": verdict.reason}


def usage(answers: Sequence[Answer], prompts: int = 1) -> dict[str, int]:
    """Token counts of a request: each of its `prompts` counts once, however many answers it has."""
    each = len(answers) // prompts
    asked = sum(answer.prompt_tokens + answer.prefill_tokens for answer in answers[::each])
    written = sum(answer.generated_tokens for answer in answers)
    return {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}
