"""Make checks by requests of their own, which share the answer's cached prefix: where no check can ride."""

from collections.abc import Sequence
from itertools import count
from typing import Any

from anydepth.detectors import TextDetector
from anydepth.extras import require
from anydepth.templates.template import Prompt
from anydepth.vllm.engine.guarded_request import GuardedRequest
from anydepth.vllm.engine.pending_check import PendingCheck
from anydepth.vllm.engine.positions import Place, end_places, start_places
from anydepth.vllm.setup import Setup
from anydepth.vllm.wire import OPENERS

_PREFIX = "anydepth-check-"
_NUMBERS = count(1)


def is_check_request(request_id: str) -> bool:
    """True for the ids of requests that `make_checks` makes; clients do not see these."""
    return request_id.startswith(_PREFIX)


def make_checks(setup: Setup, guarded: GuardedRequest) -> list[PendingCheck]:
    """The check that is due, or those that a prefill needs before its flow begins, in check requests.

    They are those of the stage at which the request's checks are; none if that is asked outside of the engine.
    """
    prompt, own, due, staged = guarded.prompt, guarded.request, guarded.feed.due, guarded.staged
    detector, _ = setup.stages[staged.at]
    if isinstance(detector, TextDetector):
        first = guarded.first_depths if due is None else (due,)
        return [_text_check(setup, detector, guarded, depth) for depth in staged.unsure or first]
    if staged.at:
        return []
    if due:
        return [_state_check(setup, own, own.all_token_ids[: prompt.start + due], due)]
    checks = []
    if prompt.prefill:  # first: the answer's tokens are read in it, and the others share its cached prefix
        checks.append(_state_check(setup, own, prompt.ids, prompt.prefill))
    checks += [_state_check(setup, own, prompt.ids[: prompt.start + depth], depth) for depth in guarded.inside]
    places = places_in(setup, prompt)
    if not guarded.at_zero:
        return checks
    if places is None:
        checks.append(_state_check(setup, own, prompt.ids[: prompt.start], 0))
    else:
        last = checks[0].request if prompt.prefill else _check_request(setup, own, prompt.ids)
        checks.append(PendingCheck(0, last, places))
    return checks


def places_in(setup: Setup, prompt: Prompt) -> list[Place] | None:
    """Where the reads of depth 0 stand in the prompt itself; None if something has to be appended to it."""
    return None if setup.embeddings is not None else start_places(setup.model.template, prompt, setup.reads)


def _state_check(setup: Setup, own: Any, ids: Sequence[int], depth: int) -> PendingCheck:
    """A check that reads states behind the text: the request is the text and the header."""
    request = _check_request(setup, own, [*ids, *setup.header_ids])
    return PendingCheck(depth, request, end_places(len(ids), setup.reads))


def _text_check(setup: Setup, detector: TextDetector, guarded: GuardedRequest, depth: int) -> PendingCheck:
    """A check of what the model goes on with behind the text; at depth 0 the header is the generation prompt."""
    if depth:
        ids = [*guarded.request.all_token_ids[: guarded.prompt.start + depth], *setup.answer_header_ids]
    else:
        ids = [*guarded.prompt.ids[: guarded.prompt.start], *setup.model.template.answer_ids(guarded.prompt)]
    if detector.mode == "look-ahead":
        request = _check_request(setup, guarded.request, ids, detector.max_new_tokens)
        return PendingCheck(depth, request, (), look_ahead=detector)
    return PendingCheck(depth, _check_request(setup, guarded.request, ids), [(len(ids) - 1, OPENERS)])


def _check_request(setup: Setup, own: Any, ids: Sequence[int], max_tokens: int = 1) -> Any:
    """A greedy request of vLLM's, with everything of the answer's own that its cached blocks depend on."""
    request_class = require("vllm.v1.request", extra="vllm").Request
    params = require("vllm", extra="vllm").SamplingParams
    ends = sorted(setup.model.end_token_ids) if max_tokens > 1 else []
    return request_class(
        request_id=f"{_PREFIX}{next(_NUMBERS)}-{own.request_id}",
        prompt_token_ids=list(ids),
        sampling_params=params(temperature=0.0, max_tokens=max_tokens, stop_token_ids=ends, detokenize=False),
        pooling_params=None,
        client_index=own.client_index,
        arrival_time=own.arrival_time,
        mm_features=list(own.mm_features),
        lora_request=own.lora_request,
        cache_salt=own.cache_salt,
        priority=own.priority,
        block_hasher=own._block_hasher,
    )
