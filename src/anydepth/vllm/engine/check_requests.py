"""Make a check by a request of its own, which shares the answer's cached prefix: where no check can ride."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from anydepth.detectors import TextDetector
from anydepth.errors import CheckError
from anydepth.extras import require
from anydepth.types import Score
from anydepth.vllm.engine.guarded_request import Ward
from anydepth.vllm.engine.pending_check import Inquiry
from anydepth.vllm.engine.positions import end_places, start_places
from anydepth.vllm.setup import Setup

_PREFIX = "anydepth-check-"
_NUMBERS = count(1)


def is_child(request_id: str) -> bool:
    """Say whether a request id is one that `make_child` gives."""
    return request_id.startswith(_PREFIX)


@dataclass(slots=True, eq=False)
class Child:
    """A request that makes a check.

    Attributes:
        request: vLLM's request: the text so far and the header. Clients do not see it.
        ward: Whose check it makes.
        depth: The depth that it checks; it may read depth 0 besides.
        inquiries: What is read in it.
        openers: Whether the probability of the refusal openers is wanted.
        mass: That probability, once it is known.
    """

    request: Any
    ward: Ward
    depth: int
    inquiries: list[Inquiry] = field(default_factory=list)
    openers: bool = False
    mass: float | None = None

    @property
    def missing(self) -> int | None:
        """The first position that has yet to be computed, or None."""
        found = [inquiry.missing for inquiry in self.inquiries]
        return min((each for each in found if each is not None), default=None)


def make_children(setup: Setup, ward: Ward) -> list[Child]:
    """The check requests for what is due: one, or those that a prefill needs before its flow begins."""
    prompt, parent, detector = ward.prompt, ward.request, setup.detector
    ids, due = tuple(parent.all_token_ids), ward.watch.due
    if isinstance(detector, TextDetector):
        depths = (0, prompt.prefill) if due is None else (due,)
        return [_asking(setup, detector, ward, depth) for depth in depths]
    if due is not None and due > 0:
        return [_reading(setup, ward, ids, due)]
    children = [_reading(setup, ward, prompt.ids[: prompt.start + depth], depth) for depth in ward.inside]
    places = start_places(setup.model.template, prompt, setup.reads)
    if places is None:
        children.append(_reading(setup, ward, prompt.ids[: prompt.start], 0))
    if prompt.prefill:
        children.append(_reading(setup, ward, prompt.ids, prompt.prefill))
        if places is not None:
            children[-1].inquiries.append(Inquiry(0, places))
    return children


def _reading(setup: Setup, ward: Ward, ids: tuple[int, ...], depth: int) -> Child:
    """A check request that reads states: the text and the header."""
    inquiry = Inquiry(depth, end_places(len(ids), setup.reads))
    return Child(_request(setup, ward.request, ids + setup.header_ids), ward, depth, [inquiry])


def _asking(setup: Setup, detector: TextDetector, ward: Ward, depth: int) -> Child:
    """A check request that looks at what the model goes on with; at depth 0 the header is the generation prompt."""
    if depth:
        ids = tuple(ward.request.all_token_ids) + setup.header_ids
    else:
        ids = ward.prompt.ids[: ward.prompt.start] + setup.model.template.answer_ids(ward.prompt)
    request = _request(setup, ward.request, ids, detector.max_new_tokens if detector.mode == "look-ahead" else 1)
    return Child(request, ward, depth, openers=detector.mode == "score")


def enough(setup: Setup, child: Child) -> bool:
    """Say whether a look-ahead can be judged already."""
    detector = setup.detector
    if not isinstance(detector, TextDetector) or child.openers:
        return True
    return detector.decided(setup.model.decode_text(list(child.request.output_token_ids)))


def replies(setup: Setup, child: Child, *, failed: bool) -> list[tuple[int, Score | Exception]]:
    """What a finished child says, a depth."""
    detector = setup.detector
    if failed:
        return [(child.depth, CheckError("the check request was not finished"))]
    if not isinstance(detector, TextDetector):
        return [(inquiry.depth, inquiry.score(setup.score)) for inquiry in child.inquiries]
    if child.openers:
        unread = CheckError("the probability of the refusal openers was not read")
        return [(child.depth, unread if child.mass is None else Score(min(child.mass, 1.0)))]
    text = setup.model.decode_text(list(child.request.output_token_ids))
    return [(child.depth, detector.judge_text(text))]


def _request(setup: Setup, parent: Any, ids: Sequence[int], max_tokens: int = 1) -> Any:
    """A greedy request of vLLM's, with everything of its parent that its cached blocks depend on."""
    request_class = require("vllm.v1.request", extra="vllm").Request
    params = require("vllm", extra="vllm").SamplingParams
    ends = sorted(setup.model.end_token_ids) if max_tokens > 1 else []
    return request_class(
        request_id=f"{_PREFIX}{next(_NUMBERS)}-{parent.request_id}",
        prompt_token_ids=list(ids),
        sampling_params=params(temperature=0.0, max_tokens=max_tokens, stop_token_ids=ends, detokenize=False),
        pooling_params=None,
        client_index=parent.client_index,
        arrival_time=parent.arrival_time,
        mm_features=list(parent.mm_features),
        lora_request=parent.lora_request,
        cache_salt=parent.cache_salt,
        priority=parent.priority,
        block_hasher=parent._block_hasher,
    )
