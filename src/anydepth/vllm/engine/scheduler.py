"""vLLM's scheduler, which lets no token out before a check that covers it."""

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from anydepth.backends.protocol import CONTENT
from anydepth.errors import AnydepthError, CheckError
from anydepth.extras import require
from anydepth.vllm.engine.admission import open_desk
from anydepth.vllm.engine.answer_report import answer_report
from anydepth.vllm.engine.check_requests import Child, enough, is_child, make_children, replies
from anydepth.vllm.engine.guarded_request import Ward
from anydepth.vllm.engine.orders import Board
from anydepth.vllm.engine.prefix_limit import Shortened
from anydepth.vllm.engine.state_files import Spool
from anydepth.vllm.limits import check_engine
from anydepth.vllm.report_field import KEY, refusal_report, stop_reason
from anydepth.vllm.setup import Setup
from anydepth.vllm.versions import check_version
from anydepth.vllm.wire import ATTRIBUTE

logger = logging.getLogger("vllm.anydepth")

_base: Any = require("vllm.v1.core.sched.scheduler", extra="vllm")
_engine: Any = require("vllm.v1.engine", extra="vllm")
Status: Any = require("vllm.v1.request", extra="vllm").RequestStatus

_GOOD = ("stop", "length")


class GuardedScheduler(_base.Scheduler):
    """Give it to vLLM as `scheduler_cls`.

    A check rides in the decode step: the header is scheduled as draft tokens behind the last token. Where none can
    ride, the request leaves vLLM's queues until a check request (`Child`) has answered. A request with a check due
    never decodes without it, so that nothing has to be caught up with.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_version()
        self.setup = Setup.of(self.vllm_config)
        check_engine(self, self.setup)
        self._wards: dict[str, Ward] = {}
        self._children: dict[str, Child] = {}
        self._refused: list[tuple[int, Any]] = []
        self._spool = Spool(self.setup) if self.setup.options.collects else None
        if self._spool is None:
            self._board = Board(self.setup)
            self._desk = open_desk(self, self.setup)
            logger.info("anydepth guards answers with %s: %s", self.setup.detector.name, self.setup.guard)

    # -- requests come and go ------------------------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """Open a ward for the request, or refuse it."""
        if self._spool is not None:
            self._spool.add(request)
        elif request.request_id not in self.requests and request.pooling_params is None:
            try:
                ward = self._desk.open(request)
            except AnydepthError as error:
                reason = stop_reason(refusal_report(error))
                self._refused.append((request.client_index, self._output(request, _engine.FinishReason.STOP, reason)))
                return
            super().add_request(request)
            if ward is not None:
                self._wards[request.request_id] = ward
                self._attend(ward)
            return
        super().add_request(request)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: Any) -> list[Any]:
        """Close the accounts of requests that are aborted, and end their children with them."""
        ids = list(self.requests) if request_ids is None else request_ids
        ids = [ids] if isinstance(ids, str) else list(ids)
        ids += [child for each in ids if (ward := self._wards.get(each)) for child in ward.children]
        finished = super().finish_requests(ids, finished_status)
        for each in ids:
            self._children.pop(each, None)
            if ward := self._wards.pop(each, None):
                ward.watch.broken("error" if finished_status == Status.FINISHED_ERROR else "cancelled")
        return [each for each in finished if not is_child(each.request_id)]

    def has_requests(self) -> bool:
        """Go on until refusals have been told, too."""
        return bool(self._refused) or super().has_requests()

    # -- before a step -------------------------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Let due checks ride, then tell the worker what to read."""
        if self._spool is not None:
            output = super().schedule(*args, **kwargs)
            orders = self._spool.orders(self.requests, output)
        else:
            riders = self._seat()
            first = {ward.request.request_id for ward in riders}
            order = {request.request_id: place for place, request in enumerate(self.running)}
            if riders:
                self.running.sort(key=lambda request: request.request_id not in first)
            output = super().schedule(*args, **kwargs)
            if riders:
                self.running.sort(key=lambda request: order.get(request.request_id, len(order)))
                self._unseat(riders, output)
            orders = self._board.orders(output, self.requests, self._wards, self._children)
        if orders:
            setattr(output, ATTRIBUTE, orders)
        return output

    def _seat(self) -> list[Ward]:
        """Put the header behind requests with a check due; those that the budget has no room for sit the step out."""
        for ward in list(self._wards.values()):
            if ward.waits and not ward.held and ward.request.status == Status.PREEMPTED:
                self._attend(ward, child=True)  # it would be resumed with the token after the check
        header, riders = self.setup.header_ids, []
        budget = min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens)
        for request in self.running:
            ward = self._wards.get(request.request_id)
            if ward is None or not ward.waits or not ward.decodes:
                continue
            if ward.watch.due != ward.depth:  # cannot be: the last resort, so that it could never go unseen
                ward.watch.answer(ward.watch.due or 0, CheckError(f"overdue: the answer is at depth {ward.depth}"))
                continue
            content = any(read.token == CONTENT for read in self.setup.reads)
            if content and request.num_computed_tokens == request.num_tokens:
                request.num_computed_tokens -= 1  # the last token's state is wanted too: it is computed again
            need = request.num_tokens + len(header) - request.num_computed_tokens
            if need > budget:
                request.next_decode_eligible_step = self.current_step + 2  # the step after the one that comes now
                continue
            budget -= need
            request.spec_token_ids = list(header)
            ward.ride = self._board.ride(ward)
            riders.append(ward)
        return riders

    def _unseat(self, riders: list[Ward], output: Any) -> None:
        """Take back the rides that do not take place: requests were preempted, or the budget was smaller after all."""
        header = list(self.setup.header_ids)
        for ward in riders:
            request, due = ward.request, ward.watch.due or 0
            if request.request_id not in output.num_scheduled_tokens:
                ward.ride, request.spec_token_ids = None, []
            elif output.scheduled_spec_decode_tokens.get(request.request_id) != header:
                ward.ride = None
                ward.watch.answer(due, CheckError("the header was cut short"))

    def get_grammar_bitmask(self, scheduler_output: Any) -> Any:
        """Masks for the tokens that are sampled: none for the header, none for answers that have ended."""
        counts = scheduler_output.num_scheduled_tokens
        going = {each: n for each, n in counts.items() if not ((w := self._wards.get(each)) and w.ending)}
        return super().get_grammar_bitmask(
            replace(scheduler_output, num_scheduled_tokens=going, scheduled_spec_decode_tokens={})
        )

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        """Let no cached prefix reach beyond the first state that has yet to be read: cached tokens are not computed."""
        ward, child = self._wards.get(request.request_id), self._children.get(request.request_id)
        missing = child.missing if child else ward.start.missing if ward and ward.start else None
        if self._spool is not None:
            missing = self._spool.missing(request.request_id)
        return super()._get_local_prefix_cache_hit(request if missing is None else Shortened(request, missing))

    # -- after a step --------------------------------------------------------------------------------------------------

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        """Bring the scores to the flows, then the tokens; send what was released."""
        findings = getattr(model_runner_output, ATTRIBUTE, None)
        if self._spool is not None:
            self._spool.take(findings)
            return super().update_from_output(scheduler_output, model_runner_output)
        self._board.collect(findings, self._children)
        touched = [w for each in scheduler_output.num_scheduled_tokens if (w := self._wards.get(each))]
        for ward in touched:
            if ward.start is not None and ward.start.missing is None:
                inquiry, ward.start = ward.start, None
                ward.watch.answer(0, inquiry.score(self.setup.score))
            if ward.ride is not None:
                inquiry, ward.ride = ward.ride, None
                ward.watch.answer(inquiry.depth, inquiry.score(self.setup.score))
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        touched += self._hold_back(outputs)
        for ward in dict.fromkeys(touched):
            self._attend(ward)
            self._send(ward, outputs)
        for client, output in self._refused:
            self._outputs_of(outputs, client).append(output)
        self._refused.clear()
        return {client: each for client, each in outputs.items() if _says_something(each)}

    def _update_request_with_output(
        self, request: Any, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        """Give new tokens to the watch; an answer that has ended goes on until its last check is made."""
        if child := self._children.get(request.request_id):
            new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
            if not stopped and enough(self.setup, child):
                request.status, stopped = Status.FINISHED_STOPPED, True
            return new_token_ids, stopped
        ward = self._wards.get(request.request_id)
        if ward is None:
            return super()._update_request_with_output(request, new_token_ids, is_stale)
        watch = ward.watch
        if ward.start is not None:  # the prompt is computed, and depth 0 was not read
            inquiry, ward.start = ward.start, None
            watch.answer(0, inquiry.score(self.setup.score))
        if watch.over:
            return [], self._end(ward)
        if ward.ending is not None:
            return [], False  # sampled behind the end of the answer: never part of it
        new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if stopped:
            ward.ending = (request.status, request.stop_reason)
            length = request.status == Status.FINISHED_LENGTH_CAPPED
            request.status, request.stop_reason = Status.RUNNING, None
            watch.push(new_token_ids, "length" if length else "stop")
            ward.take_off_end(self.hash_block_size)
        else:
            watch.push(new_token_ids)
        return new_token_ids, self._end(ward) if watch.over else False

    def _end(self, ward: Ward) -> bool:
        """Give vLLM's request the end that its answer has come to."""
        request = ward.request
        if ward.watch.halted or ward.ending is None:
            report = answer_report(ward.watch, detector=self.setup.detector.name, checks=ward.tell_checks)
            request.status, request.stop_reason = Status.FINISHED_STOPPED, stop_reason(report)
        else:
            request.status, request.stop_reason = ward.ending
        return True

    def _hold_back(self, outputs: dict[int, Any]) -> list[Ward]:
        """Take the outputs of guarded requests and children out; returns the wards whose children have answered."""
        answered: list[Ward] = []
        for each in outputs.values():
            kept = []
            for output in each.outputs:
                if child := self._children.get(output.request_id):
                    if output.finish_reason is not None:
                        answered.append(self._answered(child, failed=str(output.finish_reason) not in _GOOD))
                elif ward := self._wards.get(output.request_id):
                    ward.outgoing.hold(output)
                    if output.finish_reason is not None and not ward.watch.over:  # vLLM gave it up
                        del self._wards[output.request_id]
                        ward.watch.broken("error")
                        kept.append(self._output(ward.request, output.finish_reason, output.stop_reason))
                else:
                    kept.append(output)
            each.outputs = kept
            if each.finished_requests:
                each.finished_requests = {name for name in each.finished_requests if not is_child(name)}
        return answered

    def _answered(self, child: Child, *, failed: bool) -> Ward:
        """Note what a check request has said; the last one that a flow waits for lets it go on."""
        del self._children[child.request.request_id]
        ward = child.ward
        ward.children.discard(child.request.request_id)
        ward.replies.update(replies(self.setup, child, failed=failed))
        if not ward.children:
            ward.settle()
        return ward

    def _attend(self, ward: Ward, *, child: bool = False) -> None:
        """See to it that a due check is made, and that a request goes on that waits for none.

        Args:
            ward: The request.
            child: Whether the check cannot ride, though the detector reads states.
        """
        request = ward.request
        if ward.waits and (child or ward.held or not self.setup.reads or not request.num_output_tokens):
            if not ward.held:
                self._take_out(request)
                ward.held = True
            for new in reversed(make_children(self.setup, ward)):  # each goes to the front of the queue
                name = new.request.request_id
                ward.children.add(name)
                self._children[name], self.requests[name] = new, new.request
                self.waiting.prepend_request(new.request)
        elif ward.goes_on:
            ward.held = False
            if request.status == Status.PREEMPTED:
                self.waiting.prepend_request(request)
            else:
                self._enqueue_waiting_request(request)

    def _take_out(self, request: Any) -> None:
        """Take a request out of vLLM's queues; its blocks go back to the prefix cache, which it is resumed from."""
        if request.status == Status.RUNNING:
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())
        self.waiting.remove_requests([request])
        self.kv_holding_waiting.remove_requests([request])
        self.deferred_waiting.discard(request)

    def _send(self, ward: Ward, outputs: dict[int, Any]) -> None:
        """Let what was released leave, with the end if the answer has ended."""
        watch, request = ward.watch, ward.request
        if request.request_id not in self._wards or not (watch.released or watch.over):
            return
        tokens, watch.released = watch.released, []
        finish = reason = None
        fields = ward.outgoing.take(len(tokens))
        if watch.over:
            if not request.is_finished():
                self._end(ward)
                status, reason = request.status, request.stop_reason
                request.status = Status.PREEMPTED if ward.held else Status.RUNNING
                super().finish_requests(request.request_id, status)
            finish, reason = request.get_finished_reason(), request.stop_reason
            report = answer_report(watch, detector=self.setup.detector.name, checks=ward.tell_checks)
            fields["kv_transfer_params"] = {KEY: report}
            del self._wards[request.request_id]
        output = self._output(request, finish, reason, tokens, **fields)
        self._outputs_of(outputs, request.client_index).append(output)

    def _output(self, request: Any, finish: Any, reason: Any, tokens: list[int] | None = None, **fields: Any) -> Any:
        fields |= {"finish_reason": finish, "stop_reason": reason}
        return _engine.EngineCoreOutput(request_id=request.request_id, new_token_ids=tokens or [], **fields)

    def _outputs_of(self, outputs: dict[int, Any], client: int) -> list[Any]:
        if client not in outputs:
            outputs[client] = _engine.EngineCoreOutputs(outputs=[])
        return outputs[client].outputs

    def shutdown(self) -> None:
        """Close the accounts of answers that are under way, then the audit trail."""
        if self._spool is None:
            for ward in self._wards.values():
                ward.watch.broken("shutdown")
            self._wards.clear()
            self._desk.audit.close()
        super().shutdown()

    def make_spec_decoding_stats(self, *args: Any, **kwargs: Any) -> None:
        """The header is no speculation: none of it counts in vLLM's figures."""


def _says_something(outputs: Any) -> bool:
    return bool(outputs.outputs or outputs.scheduler_stats or outputs.finished_requests)
