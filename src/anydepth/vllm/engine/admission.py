"""Decide how a new request is guarded."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from anydepth.audit.answer import Account, gate_record
from anydepth.audit.trail import Audit, open_audit
from anydepth.config import GuardConfig
from anydepth.errors import BadRequest
from anydepth.gate import require_halting
from anydepth.gate_report import allowed
from anydepth.guard_overrides import GuardOverrides, apply_overrides
from anydepth.schedule import scheduled_depths
from anydepth.templates.template import Prompt
from anydepth.types import GateVerdict
from anydepth.vllm.engine.check_requests import places_in
from anydepth.vllm.engine.flow_feed import FlowFeed
from anydepth.vllm.engine.gate_feed import GateFeed
from anydepth.vllm.engine.guarded_request import GuardedRequest
from anydepth.vllm.engine.pending_check import PendingCheck
from anydepth.vllm.engine.positions import locate
from anydepth.vllm.gate_question import GATE, GateQuestion
from anydepth.vllm.report_field import KEY
from anydepth.vllm.setup import Setup

_INTERNAL = re.compile(r"^(?:(\d+)_)?(.+?)(?:-[0-9a-f]{8})?$")
"""vLLM's internal id: index of the choice if there are several, the client's id, eight random characters."""


@dataclass(frozen=True)
class Admission:
    """Makes a `GuardedRequest` of each request, or refuses it.

    Attributes:
        setup: The guard.
        context: Longest sequence that vLLM runs.
        name: Name of the model that clients use.
        rank: Number of this engine among data-parallel ones; each has an audit trail of its own.
    """

    setup: Setup
    context: int
    name: str
    rank: int = 0

    @cached_property
    def audit(self) -> Audit:
        """Where the accounts go."""
        table = self.setup.options.settings.audit
        if self.rank:
            table = table.model_copy(update={"path": f"{table.path}-rank{self.rank}"})
        return open_audit(table)

    def admit(self, request: Any) -> GuardedRequest | None:
        """Guard a request; None for one that may go without a guard, and does.

        Raises:
            BadRequest: The request asks for what is not allowed, or cannot be guarded.
        """
        overrides = _overrides(request)
        if overrides.pop("guard", True) is False:
            if not self.setup.options.allow_unguarded:
                raise BadRequest("anydepth.guard is false, which this server does not allow; leave it out", "anydepth")
            return None
        question = None if (asked := overrides.pop(GATE, None)) is None else GateQuestion.read(asked)
        guard, tell = self._guard(overrides)
        if request.prompt_token_ids is None or request.prompt_embeds is not None:
            raise BadRequest("the prompt is given as embeddings, which cannot be guarded; send text or tokens")
        if request.resumable:
            raise BadRequest("streamed input cannot be guarded; send the whole prompt")
        own = set[int]() if self.setup.embeddings is None else set(self.setup.header_ids)
        if taken := own & set(request.prompt_token_ids):
            raise BadRequest(f"the prompt has the ids {sorted(taken)}, which are the guard's own; leave them out")
        room = self.context - request.num_prompt_tokens - self.setup.room
        if room < 1:
            raise BadRequest(
                f"the prompt has {request.num_prompt_tokens} tokens, and one more with a check of {self.setup.room} do "
                f"not fit the model's context of {self.context}; shorten it",
                "messages",
            )
        request.max_tokens = min(request.max_tokens, room)
        if question is not None:
            return self._gated(request, guard, question)
        return self._guarded(request, guard, tell=tell)

    def _gated(self, request: Any, guard: GuardConfig, question: GateQuestion) -> GuardedRequest:
        """A request that is over as soon as its call was judged; ConfigError if one reading can never halt."""
        require_halting(guard.policy)
        call, begun = question.call(request.prompt_token_ids), time.time()

        def store(found: GateVerdict) -> None:
            facts = {"id": question.id, "model": self.name, "begun": begun, "allowed": allowed(found, guard)}
            if self.setup.options.settings.audit.text:
                facts |= {"messages": [self._decode(call.prompt.ids)], "arguments": question.arguments}
            self.audit.run(self.audit.write, gate_record(found, call.prompt, guard, **facts))

        feed = GateFeed(guard, call, question.control, self.name, store)
        guarded = GuardedRequest(request, feed, call.prompt, at_zero=0 in feed.depths)
        guarded.inside = tuple(depth for depth in feed.depths if 0 < depth < call.prompt.prefill)
        return guarded

    def _guarded(self, request: Any, guard: GuardConfig, *, tell: bool) -> GuardedRequest:
        reads = self.setup.reads
        prompt = locate(self.setup.model.template, request.prompt_token_ids)
        feed = FlowFeed(
            plan=guard.plan(max_new_tokens=request.max_tokens, prefill=prompt.prefill),
            account=self._account(request, prompt, guard),
            end_token_ids=self.setup.model.end_token_ids,
            decode=self._decode if self.setup.options.settings.audit.text else None,
        )
        guarded = GuardedRequest(request, feed, prompt, tell_checks=tell)
        if not prompt.prefill:
            feed.begin({})
            if reads and (places := places_in(self.setup, prompt)) is not None:
                guarded.pending = [PendingCheck(0, request, places)]
        elif reads and guard.prefill == "inside":
            depths = scheduled_depths(guard.schedule, prompt.prefill)
            guarded.inside = tuple(depth for depth in depths if 0 < depth < prompt.prefill)
        return guarded

    def _account(self, request: Any, prompt: Prompt, guard: GuardConfig) -> Account:
        found = _INTERNAL.match(request.request_id)
        choice, name = (found[1], found[2]) if found else (None, request.request_id)
        text = [self._decode(prompt.ids)] if self.setup.options.settings.audit.text else None
        return Account(
            audit=self.audit,
            id=name,
            choice=int(choice or 0),
            endpoint="vllm",
            model=self.name,
            prompt=prompt,
            guard=guard,
            end_token_ids=self.setup.model.end_token_ids,
            messages=text,
        )

    def _guard(self, overrides: dict[str, Any]) -> tuple[GuardConfig, bool]:
        try:
            wanted = GuardOverrides.model_validate(overrides) if overrides else None
        except ValidationError as error:
            each = error.errors(include_url=False)[0]
            name = ".".join(("anydepth", *map(str, each["loc"])))
            raise BadRequest(f"{name}: {each['msg']}", name) from error
        guard = apply_overrides(self.setup.guard, wanted, self.setup.options.settings.overrides)
        return guard, wanted is not None and wanted.checks

    def _decode(self, ids: Sequence[int]) -> str:
        return self.setup.model.tokenizer.decode(list(ids), skip_special_tokens=False)


def open_admission(scheduler: Any, setup: Setup) -> Admission:
    """The admission to one of vLLM's schedulers."""
    config = scheduler.vllm_config
    served = setup.options.settings.model.name or config.model_config.served_model_name or config.model_config.model
    name = served[0] if isinstance(served, list) else str(served)
    if Path(name).is_dir():
        name = Path(name).resolve().name
    admission = Admission(setup, scheduler.max_model_len, name, config.parallel_config.data_parallel_index)
    setup.try_outside()
    assert admission.audit is not None  # a trail that cannot be opened is an error now, not at the first answer
    return admission


def _overrides(request: Any) -> dict[str, Any]:
    """What the request asks of the guard; BadRequest if it is not an object, or JSON text of one."""
    given = (request.sampling_params.extra_args or {}).get(KEY)
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise BadRequest(f"anydepth is not JSON ({error}); send an object", "anydepth") from error
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise BadRequest(f"anydepth is {given!r}; send an object", "anydepth")
    return dict(given)
