"""Read a request for vLLM's own server: what the guard is asked for, and what vLLM is to do."""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from anydepth.errors import BadRequest
from anydepth.guard_overrides import GuardOverrides
from anydepth.server.http.body_errors import complaint, shown, unreadable
from anydepth.server.http.request_limits import answer_length, check_answers, check_entries
from anydepth.settings import LimitsTable, Settings
from anydepth.vllm.front.replies import RequestedReply
from anydepth.vllm.report_field import KEY

_LENGTHS = ("max_completion_tokens", "max_tokens")
_REFUSED = {
    "use_beam_search": "beam search draws from answers that have not been checked",
    "kv_transfer_params": "the states of an answer stay in this engine",
    "ec_transfer_params": "the states of an answer stay in this engine",
    "prompt_embeds": "a prompt that is given as embeddings cannot be guarded",
}


def read_body(raw: bytes) -> dict[str, Any]:
    """The body as JSON; BadRequest if it is no object, or nothing that could be written as JSON again."""
    try:
        body = json.loads(raw)
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeError and JSONDecodeError are ValueErrors
        raise (unreadable(error) if raw else BadRequest("the body is empty; send a JSON object")) from None
    if not isinstance(body, dict):
        raise BadRequest(f"the body is {shown(body)}; send a JSON object")
    return body


def rewrite(body: dict[str, Any], settings: Settings, *, chat: bool) -> tuple[dict[str, Any], RequestedReply]:
    """The body for vLLM, and what its reply depends on; BadRequest names the field that cannot be as it is."""
    body = dict(body)
    overrides = _overrides(body.pop(KEY, None))
    for name, reason in _REFUSED.items():
        if body.get(name):
            raise BadRequest(f"{name} is not offered here: {reason}; leave it out", name, "unsupported")
    if chat:
        check_entries(settings.limits, _listed(body.get("messages")), "messages")
    n = 1 if (wanted := _whole(body, "n")) is None else wanted
    if n < 1:
        raise BadRequest(f"n is {n}; send at least 1", "n")
    prompts = 1 if chat else _prompts(body.get("prompt"))
    check_answers(settings.limits, n, prompts)
    _limit_length(body, settings.limits, chat=chat)
    _put(body, overrides)
    release = overrides.get("release", settings.guard.release)
    asked = RequestedReply(
        id=uuid.uuid4().hex,
        chat=chat,
        model=str(body.get("model") or settings.model.name or ""),
        prompts=prompts,
        n=n,
        stops=_stops(body.get("stop")),
        refusal=settings.guard.refusal,
        structured=chat and _structured(body),
        as_error=settings.blocked.style == "error",
        strict=release == "hold" and settings.guard.on_error == "closed",
        watched=release == "monitor",
    )
    return body, asked


def _overrides(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    try:
        return GuardOverrides.model_validate(given).model_dump(exclude_unset=True)
    except ValidationError as error:
        each = error.errors(include_url=False)[0]
        raise complaint({**each, "loc": (KEY, *each["loc"])}) from None


def _put(body: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Give the engine what is asked of the guard; whatever a client puts in its place itself is taken out."""
    extra = body.get("vllm_xargs")
    if extra is not None and not isinstance(extra, dict):
        raise BadRequest(f"vllm_xargs is {shown(extra)}; send an object, or leave it out", "vllm_xargs")
    extra = {name: value for name, value in (extra or {}).items() if name != KEY}
    if overrides:
        extra[KEY] = json.dumps(overrides)
    body.pop("vllm_xargs", None)
    if extra:
        body["vllm_xargs"] = extra


def _limit_length(body: dict[str, Any], limits: LimitsTable, *, chat: bool) -> None:
    """Hold each field that vLLM may take the answer's length from against `[limits]`."""
    names = _LENGTHS if chat else _LENGTHS[1:]
    for name in names:
        answer_length(limits, _whole(body, name), name)
    if all(body.get(name) is None for name in names):
        body["max_tokens"] = answer_length(limits, None)


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    """A whole number, not what vLLM would make one of: it would pass by the limits."""
    value = body.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise BadRequest(f"{name} is {shown(value)}; send a whole number, or leave it out", name)
    return value


def _prompts(prompt: Any) -> int:
    """How many prompts there are: a text, tokens, or a list of either."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _structured(body: Mapping[str, Any]) -> bool:
    """Whether the answer has to be JSON, or a call, or of another form that a parser reads."""
    form, choice = body.get("response_format"), body.get("tool_choice")
    formed = isinstance(form, dict) and form.get("type") != "text"
    return formed or choice == "required" or isinstance(choice, dict) or bool(body.get("structured_outputs"))


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else _listed(stop)
    return tuple(each for each in stops if isinstance(each, str))
