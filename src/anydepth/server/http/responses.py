"""The responses that the server writes."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from anydepth.guard_report import GuardReport


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


class Usage(_Reply):
    """Token counts: the prefill belongs to the prompt, withheld tokens to the completion."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Choice(_Reply):
    index: int
    finish_reason: str
    logprobs: None = None
    anydepth: GuardReport


class ChatChoice(_Choice):
    """One answer of a chat."""

    message: dict[str, Any]


class TextChoice(_Choice):
    """One plain completion."""

    text: str


class _Answers(_Reply):
    id: str
    object: str
    created: int
    model: str
    usage: Usage


class ChatReply(_Answers):
    """`chat.completion`; a stream has `chat.completion.chunk` objects instead."""

    choices: list[ChatChoice]


class TextReply(_Answers):
    """`text_completion`, in a stream as well."""

    choices: list[TextChoice]


class ItemsReply(_Reply):
    """`response`, of the Responses API; a stream has events instead, the last of which holds it."""

    id: str
    object: str
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]
    incomplete_details: dict[str, Any] | None
    usage: dict[str, Any] | None
    anydepth: GuardReport


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


class GateReport(_Reply):
    """The `anydepth` object of a gated tool call; a score that failed, or was not asked for, is null."""

    halted: bool
    would_halt: bool
    tool: str
    score: float | None
    before: float | None
    statistic: float | None
    threshold: float
    depth: int
    reason: str
    policy: dict[str, Any]
    release: str
    failed_checks: int
    method: str


class GateReply(_Reply):
    """Whether a proposed tool call may be run."""

    id: str
    object: str
    created: int
    model: str
    allowed: bool
    why: str
    refusal: str | None
    anydepth: GateReport


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
