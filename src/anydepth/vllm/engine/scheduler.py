"""vLLM's scheduler, which lets no token out before a check that covers it."""

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from anydepth.backends.protocol import CONTENT
from anydepth.errors import AnydepthError, CheckError
from anydepth.extras import require
from anydepth.vllm.engine.admission import open_admission
from anydepth.vllm.engine.answer_report import answer_report
from anydepth.vllm.engine.check_requests import is_check_request, make_checks
from anydepth.vllm.engine.core_outputs import FinishReason, core_output, outputs_of
from anydepth.vllm.engine.guarded_request import GuardedRequest, NextStep, RequestStage
from anydepth.vllm.engine.outside_checks import ask_outside, come_from_outside
from anydepth.vllm.engine.pending_check import PendingCheck
from anydepth.vllm.engine.positions import Place, end_places
from anydepth.vllm.engine.reading_scheduler import ReadingScheduler
from anydepth.vllm.report_field import KEY, refusal_report, stop_reason
from anydepth.vllm.wire import Findings

logger = logging.getLogger("vllm.anydepth")

Status: Any = require("vllm.v1.request", extra="vllm").RequestStatus


class GuardedScheduler(ReadingScheduler):
    """Give it to vLLM as `scheduler_cls`.

    A check rides in the decode step: the header is scheduled as draft tokens behind the last token. Where none can
    ride, the request leaves vLLM's queues until its check requests have answered. A request with a check due never
    decodes without it, so that nothing has to be caught up with.

    With asynchronous scheduling a step is scheduled while the one before it runs. A check then rides at the depth that
    the answer will have, and the step after it is scheduled before the verdict is known: one token more is decoded, and
    never released if the verdict halts. A request sits a step out if a second check would be due before the verdict of
    the first, or if it has ended.
    """

    collects = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guarded: dict[str, GuardedRequest] = {}
        self._check_requests: dict[str, GuardedRequest] = {}
        self._refused: list[tuple[int, Any]] = []
        self._admission = open_admission(self, self.setup)
        logger.info("anydepth guards answers with %s: %s", self.setup.detector.name, self.setup.guard)

    # -- requests come and go ------------------------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """Guard the request, or refuse it."""
        if request.request_id in self.requests or request.pooling_params is not None:
            super().add_request(request)
            return
        try:
            guarded = self._admission.admit(request)
        except AnydepthError as error:
            reason = stop_reason(refusal_report(error))
            self._refused.append((request.client_index, core_output(request, FinishReason.STOP, reason)))
            return
        super().add_request(request)
        if guarded is not None:
            self._guarded[request.request_id] = guarded
            self._attend(guarded)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: Any) -> list[Any]:
        """Close the accounts of requests that end, and their check requests; one that ends alone is a failed check."""
        ids = list(self.requests) if request_ids is None else request_ids
        ids = [ids] if isinstance(ids, str) else list(ids)
        ids += [name for each in ids if (guarded := self._guarded.get(each)) for name in guarded.check_requests]
        finished = super().finish_requests(ids, finished_status)
        for each in ids:
            if guarded := self._guarded.pop(each, None):
                guarded.feed.broken("error" if finished_status == Status.FINISHED_ERROR else "cancelled")
        for each in ids:
            if (guarded := self._check_requests.pop(each, None)) and guarded.request.request_id in self._guarded:
                guarded.conclude(each, self.setup, failed=True)
        return [each for each in finished if not is_check_request(each.request_id)]

    def has_requests(self) -> bool:
        """Go on until refusals have left, checks outside have ended and held requests have been attended to, too."""
        return bool(self._refused or any(g.held_idle for g in self._guarded.values())) or super().has_requests()

    # -- before a step -------------------------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Let due checks ride, first of all requests."""
        riders = self._add_headers()
        first = {guarded.request.request_id for guarded in riders}
        order = {request.request_id: place for place, request in enumerate(self.running)}
        if riders:
            self.running.sort(key=lambda request: request.request_id not in first)
        for guarded in riders:
            guarded.request.max_tokens += 1  # vLLM sees no need for a step behind the last token
        output = super().schedule(*args, **kwargs)
        for guarded in riders:
            guarded.request.max_tokens -= 1
        if riders:
            self.running.sort(key=lambda request: order.get(request.request_id, len(order)))
            self._see_off(riders, output)
        return output

    def _add_headers(self) -> list[GuardedRequest]:
        """Put the header behind requests whose check is due; those that must not go on without it sit the step out."""
        for guarded in list(self._guarded.values()):
            if guarded.stage is RequestStage.DUE and not guarded.held and guarded.request.status == Status.PREEMPTED:
                self._attend(guarded, apart=True)  # it would be resumed with the token after the check
        header, riders = self.setup.header_ids, []
        content = any(read.token == CONTENT for read in self.setup.reads)
        budget = min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens)
        for request in self.running:
            guarded = self._guarded.get(request.request_id)
            step = NextStep.DECODE if guarded is None else guarded.next_step
            if guarded is None or step is NextStep.DECODE:
                continue
            if step is NextStep.OVERDUE:  # cannot be: the last resort, so that it could never go unseen
                error = CheckError(f"overdue: the answer is at depth {guarded.depth_soon}")
                guarded.feed.answer(guarded.feed.due or 0, error)
                continue
            if step is NextStep.SIT_OUT or not self.setup.reads:
                self._sit_out(request)
                continue
            if content and request.num_computed_tokens == guarded.known_soon:
                request.num_computed_tokens -= 1  # the last token's state is read too: it is computed again
            need = guarded.known_soon + len(header) - request.num_computed_tokens
            if need > budget:
                self._sit_out(request)
                continue
            budget -= need
            request.spec_token_ids = list(header)
            places = end_places(guarded.known_soon, self.setup.reads)
            guarded.pending = [PendingCheck(guarded.depth_soon, request, places)]
            riders.append(guarded)
        return riders

    def _sit_out(self, request: Any) -> None:
        """Leave a request out of the step that is scheduled next."""
        request.next_decode_eligible_step = self.current_step + 2

    def _see_off(self, riders: list[GuardedRequest], output: Any) -> None:
        """Note in which step the checks ride, and take the header off again: no token of it is ever accepted.

        A check whose request was not scheduled after all, because it was preempted for one, is taken back.
        """
        header = list(self.setup.header_ids)
        for guarded in riders:
            request, (check,) = guarded.request, guarded.pending
            if request.request_id not in output.num_scheduled_tokens:
                guarded.pending, request.spec_token_ids = [], []
                continue
            check.step = output
            drafts = output.scheduled_spec_decode_tokens.get(request.request_id, [])
            if drafts != header:
                check.failure = "the header was cut short"
            request.num_computed_tokens -= len(drafts)
            request.num_output_placeholders -= len(drafts)

    def get_grammar_bitmask(self, scheduler_output: Any) -> Any:
        """Masks for the tokens that are sampled: none for the header, none for answers that have ended."""
        counts = scheduler_output.num_scheduled_tokens
        going = {each: n for each, n in counts.items() if not ((g := self._guarded.get(each)) and g.ending)}
        return super().get_grammar_bitmask(
            replace(scheduler_output, num_scheduled_tokens=going, scheduled_spec_decode_tokens={})
        )

    def _unread(self, request_id: str) -> Iterable[Place]:
        guarded = self._guarded.get(request_id) or self._check_requests.get(request_id)
        pending = [] if guarded is None else guarded.pending
        own = [check for check in pending if check.request.request_id == request_id and check.step is None]
        return [place for check in own for place in check.unread]

    def _unread_tokens(self, request_id: str) -> range:
        guarded = self._guarded.get(request_id) or self._check_requests.get(request_id)
        if guarded is None or not self.setup.means or guarded.token_reader != request_id:
            return range(0)
        return guarded.unread_tokens

    # -- after a step --------------------------------------------------------------------------------------------------

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        """Bring the scores to the flows, then the tokens; send what was released."""
        touched = [g for each in scheduler_output.num_scheduled_tokens if (g := self._guarded.get(each))]
        scheduler_output.scheduled_spec_decode_tokens = {}  # `_see_off` has taken the headers off already
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._hold_back(outputs)
        come_from_outside(self.setup, self._guarded.values(), idle=not scheduler_output.num_scheduled_tokens)
        touched += [guarded for guarded in self._guarded.values() if guarded.held_idle]
        for guarded in dict.fromkeys(touched):
            if guarded.request.request_id in self._guarded:  # else vLLM gave it up in this step
                self._attend(guarded)
                self._send(guarded, outputs)
        for client, output in self._refused:
            outputs_of(outputs, client).append(output)
        self._refused.clear()
        said = ("outputs", "scheduler_stats", "finished_requests")
        return {client: each for client, each in outputs.items() if any(getattr(each, name) for name in said)}

    def _take(self, findings: Findings, step: Any) -> None:
        for name, (first, found) in findings.spans.items():
            if reader := self._guarded.get(name) or self._check_requests.get(name):  # no token that never came
                reader.tokens.add(first, found[: max(0, reader.request.num_tokens - first)])
        for guarded in self._guarded.values():
            for check in guarded.pending:
                check.take(findings.states)
                # What rode is over with its step; depth 0 may be read in several, until the prompt is computed.
                rode = check.step is step
                if rode or (check.request is guarded.request and check.step is None and not check.unread):
                    guarded.conclude(guarded.request.request_id, self.setup)
            guarded.forget(self.setup.longest_mean)

    def _update_request_with_output(
        self, request: Any, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        """Give new tokens to the flow; an answer that has ended goes on until its last check is made."""
        guarded, name = self._guarded.get(request.request_id), request.request_id
        if guarded is None:
            new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
            asked = self._check_requests.get(name)
            if asked is not None and not stopped and asked.decided(name, self.setup):
                request.status, stopped = Status.FINISHED_STOPPED, True
            return new_token_ids, stopped
        feed, status = guarded.feed, request.status
        if any(check.step is None for check in guarded.pending):  # the prompt is computed, and depth 0 was not read
            guarded.conclude(name, self.setup)
        if feed.over or guarded.ending is not None:  # sampled while the answer was checked, or behind its end
            if feed.halted and guarded.ending is None:
                feed.withheld += max(len(new_token_ids), request.num_output_placeholders)
            if not is_stale:
                request.num_output_placeholders -= len(new_token_ids)
            return [], self._end(guarded) if feed.over else False
        new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if stopped:
            guarded.ending = (request.status, request.stop_reason)
            length = request.status == Status.FINISHED_LENGTH_CAPPED
            request.status, request.stop_reason = status, None
            feed.push(new_token_ids, "length" if length else "stop")
            guarded.take_off_end(self.hash_block_size)
            if not feed.over and guarded.drop_ahead():
                self._sit_out(request)  # until the worker has dropped it, too
        else:
            feed.push(new_token_ids)
        return new_token_ids, self._end(guarded) if feed.over else False

    def _report(self, guarded: GuardedRequest) -> dict[str, Any]:
        return answer_report(guarded.feed, detector=self.setup.detector.name, checks=guarded.tell_checks)

    def _end(self, guarded: GuardedRequest) -> bool:
        """Give vLLM's request the end that its answer has come to."""
        request = guarded.request
        if guarded.feed.halted or guarded.ending is None:
            request.status, request.stop_reason = Status.FINISHED_STOPPED, stop_reason(self._report(guarded))
        else:
            request.status, request.stop_reason = guarded.ending
        return True

    def _hold_back(self, outputs: dict[int, Any]) -> None:
        """Take out the outputs of guarded and check requests, and conclude the checks of those that have ended."""
        for each in outputs.values():
            kept = []
            for output in each.outputs:
                name, finish = output.request_id, output.finish_reason
                if guarded := self._check_requests.get(name):
                    if finish is not None:
                        del self._check_requests[name]
                        guarded.conclude(name, self.setup, failed=str(finish) not in ("stop", "length"))
                elif guarded := self._guarded.get(name):
                    guarded.output.hold(output)
                    if finish is not None and not guarded.feed.over:  # vLLM gave it up
                        del self._guarded[name]
                        guarded.feed.broken("error")
                        kept.append(core_output(guarded.request, finish, output.stop_reason))
                else:
                    kept.append(output)
            each.outputs = kept
            if each.finished_requests:
                each.finished_requests = {name for name in each.finished_requests if not is_check_request(name)}

    def _attend(self, guarded: GuardedRequest, *, apart: bool = False) -> None:
        """See to it that a due check is made, and that a request goes on that waits for none.

        Args:
            guarded: The request.
            apart: True if the check cannot ride, though the detector reads states.
        """
        request, stage = guarded.request, guarded.stage
        if stage is RequestStage.UNSURE:
            self._check_apart(guarded)
        elif stage is RequestStage.DUE:
            if apart or guarded.held or not self.setup.reads or not request.num_output_tokens:
                self._check_apart(guarded)
        elif stage is RequestStage.FREE and guarded.held:
            guarded.held = False
            if request.status == Status.PREEMPTED:
                self.waiting.prepend_request(request)
            else:
                self._enqueue_waiting_request(request)

    def _check_apart(self, guarded: GuardedRequest) -> None:
        """Hold the request, and put check requests to the front of the queue, or ask outside."""
        if not guarded.held:
            self._take_out(guarded.request)
            guarded.held = True
        guarded.pending = make_checks(self.setup, guarded)
        if not guarded.pending:
            ask_outside(self.setup, guarded)
        for name, request in reversed(guarded.check_requests.items()):
            self._check_requests[name], self.requests[name] = guarded, request
            self.waiting.prepend_request(request)

    def _take_out(self, request: Any) -> None:
        """Take a request out of vLLM's queues; its blocks go back to the prefix cache, which it is resumed from."""
        if request.status == Status.RUNNING:
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())
        self.waiting.remove_requests([request])
        self.kv_holding_waiting.remove_requests([request])
        self.deferred_waiting.discard(request)

    def _send(self, guarded: GuardedRequest, outputs: dict[int, Any]) -> None:
        """Let what was released leave, with the end if the answer has ended."""
        feed, request = guarded.feed, guarded.request
        if request.request_id not in self._guarded or not (feed.released or feed.over):
            return
        tokens, feed.released = feed.released, []
        finish = reason = None
        fields = guarded.output.take(len(tokens))
        if feed.over:
            if not request.is_finished():
                queue = request.status
                self._end(guarded)
                status, request.status = request.status, queue
                super().finish_requests(request.request_id, status)
            finish, reason = request.get_finished_reason(), request.stop_reason
            fields["kv_transfer_params"] = {KEY: self._report(guarded)}
            del self._guarded[request.request_id]
        outputs_of(outputs, request.client_index).append(core_output(request, finish, reason, tokens, **fields))

    def shutdown(self) -> None:
        """Close the accounts of answers that are under way, then the audit trail."""
        for guarded in self._guarded.values():
            guarded.feed.broken("shutdown")
        self._guarded.clear()
        self._admission.audit.close()
        super().shutdown()
