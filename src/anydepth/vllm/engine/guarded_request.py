"""Follow one guarded request inside the scheduler."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from anydepth.templates.template import Prompt
from anydepth.vllm.engine.answer_tokens import AnswerTokens
from anydepth.vllm.engine.flow_feed import FlowFeed
from anydepth.vllm.engine.gate_feed import GateFeed
from anydepth.vllm.engine.held_output import HeldOutput
from anydepth.vllm.engine.pending_check import PendingCheck
from anydepth.vllm.engine.staged_checks import StagedChecks
from anydepth.vllm.setup import Setup


class RequestStage(Enum):
    """What a guarded request waits for."""

    FREE = "no check is due"
    DUE = "a check is due that nothing is under way for"
    CHECKING = "a check is under way"
    UNSURE = "a check is due at the next stage of a cascade, which nothing is under way for"
    OVER = "the answer has ended"


class NextStep(Enum):
    """What a guarded request may do in the step that is scheduled next."""

    DECODE = "compute tokens, without a check"
    CHECK = "compute the header behind its last token"
    SIT_OUT = "nothing, until a verdict or the end of the answer is known"
    OVERDUE = "nothing: the check that is due was passed by"


@dataclass(slots=True, eq=False)
class GuardedRequest:
    """A request of vLLM's, the flow of its answer, and how its next check is being made.

    Attributes:
        request: The `Request` of vLLM.
        feed: The flow of its answer, or the readings of a call that is to be judged.
        prompt: Its prompt, with what is prefill told apart.
        tell_checks: True if the client may see every check.
        inside: Depths inside the prefill to check before the flow begins.
        at_zero: Whether depth 0 is checked before the flow begins; a gate may need its call's end alone.
        pending: The checks under way. Either one that is made in the request itself: depth 0 while the prompt is
            computed, or one that rides in the present step behind the last token. Or those of its check requests.
        staged: The checks under way, by what the stages of a cascade have said of them.
        held: True while the request is in none of vLLM's queues, until its checks have been made apart from it.
        ending: Status and stop reason that vLLM ended the answer with; kept back until the last check is made.
        output: What has not left yet.
        tokens: What was found at the tokens of the answer, for the reads that are means.
    """

    request: Any
    feed: FlowFeed | GateFeed
    prompt: Prompt
    tell_checks: bool = False
    inside: tuple[int, ...] = ()
    at_zero: bool = True
    pending: list[PendingCheck] = field(default_factory=list)
    staged: StagedChecks = field(default_factory=StagedChecks)
    held: bool = False
    ending: tuple[Any, Any] | None = None
    output: HeldOutput = field(default_factory=HeldOutput)
    tokens: AnswerTokens = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = AnswerTokens(self.prompt.start)

    @property
    def stage(self) -> RequestStage:
        """What the request waits for now."""
        if self.feed.over:
            return RequestStage.OVER
        if self.pending or self.staged.outside:
            return RequestStage.CHECKING
        if self.staged.unsure:
            return RequestStage.UNSURE
        return RequestStage.DUE if self.feed.due is not None or not self.feed.begun else RequestStage.FREE

    @property
    def first_depths(self) -> tuple[int, ...]:
        """The depths, rising, that are checked before the flow begins."""
        return (*((0,) if self.at_zero else ()), *self.inside, self.prompt.prefill)

    @property
    def held_idle(self) -> bool:
        """True if the request is held, and no check request will end by which vLLM's steps come back to it."""
        return self.held and not self.pending

    @property
    def depth(self) -> int:
        """Assistant tokens of the request as vLLM has it, an end of turn that was taken off left out."""
        return self.prompt.prefill + self.request.num_output_tokens

    @property
    def known_soon(self) -> int:
        """Tokens of the request with those that steps under way are sampling; vLLM schedules one step ahead."""
        return self.request.num_tokens + self.request.num_output_placeholders

    @property
    def depth_soon(self) -> int:
        """The depth with the tokens that steps under way are sampling: that of a check which rides in the next step."""
        return self.depth + self.request.num_output_placeholders

    @property
    def next_step(self) -> NextStep:
        """What a request that is in none of vLLM's waiting queues may do next, if its checks can ride."""
        stage = self.stage
        if stage is RequestStage.OVER or not self.decodes:
            return NextStep.DECODE
        if stage is RequestStage.UNSURE:
            return NextStep.SIT_OUT
        if stage is RequestStage.DUE:
            return NextStep.CHECK if self.feed.due == self.depth_soon else NextStep.OVERDUE
        if self.ending is None and self.depth_soon < self.feed.reach:
            return NextStep.DECODE
        return NextStep.CHECK if stage is RequestStage.FREE else NextStep.SIT_OUT

    @property
    def decodes(self) -> bool:
        """True if the whole prompt is computed, and at most the last token is not."""
        return self.request.num_computed_tokens >= self.known_soon - 1

    @property
    def check_requests(self) -> dict[str, Any]:
        """The check requests that are under way, by id; each may make several checks."""
        return {each.request.request_id: each.request for each in self.pending if each.request is not self.request}

    @property
    def unread_tokens(self) -> range:
        """Positions of the answer's tokens, as far as there are any, that have not been read.

        In a check request they end where its text does: the answer may have got longer while its check waited.
        """
        own = self.token_reader == self.request.request_id
        return range(self.tokens.next, self.known_soon if own else self.prompt.start + self._deepest.depth)

    @property
    def token_reader(self) -> str:
        """Id of the request in which the answer's tokens are read: its own, or while it is held the deepest check's.

        The later stages of a cascade read none.
        """
        reads = self.held and self.pending and not self.staged.at
        return (self._deepest if reads else self).request.request_id

    @property
    def _deepest(self) -> PendingCheck:
        return max(self.pending, key=lambda check: check.depth)

    def decided(self, request_id: str, setup: Setup) -> bool:
        """True if no more tokens of this check request can change its score."""
        return all(each.decided(setup) for each in self.pending if each.request.request_id == request_id)

    def conclude(self, request_id: str, setup: Setup, *, failed: bool = False) -> None:
        """Note that one of vLLM's requests is over; once none is under way, score the checks for the flow.

        Args:
            request_id: Id of the answer's own request or of a check request.
            setup: The guard.
            failed: True if vLLM did not finish the request.
        """
        for check in self.pending:
            if check.request.request_id == request_id:
                check.over = True
                check.failure = "the check request was not finished" if failed else check.failure
        if self.pending and all(check.over for check in self.pending):
            replies = {check.depth: check.score(setup, self.tokens) for check in self.pending}
            self.pending = []
            self.staged.take(setup, replies)
            self._bring()

    def conclude_outside(self, setup: Setup) -> bool:
        """Bring the checks that were made outside to the flow; False while one of them has not ended."""
        ended = self.staged.take_outside(setup)
        if ended:
            self._bring()
        return ended

    def _bring(self) -> None:
        """Bring the results to the flow, unless a further stage is to be asked first."""
        if self.staged.unsure:
            return
        results = self.staged.finish()
        if not self.feed.begun:
            self.feed.begin({depth: each for depth, each in results.items() if 0 < depth < self.prompt.prefill})
        while self.feed.due in results:
            self.feed.answer(self.feed.due, results.pop(self.feed.due))

    def forget(self, longest: int) -> None:
        """Drop what was found at tokens that no later check can need.

        A check stands at the end of the tokens that there are, so later ones stand there or behind. Checks that are
        under way, those inside a prefill for one, may stand before.

        Args:
            longest: Over how many tokens the longest of the means goes.
        """
        if self.feed.begun and not self.pending:
            depth = self.tokens.read if self.feed.due is None else min(self.feed.due, self.tokens.read)
            self.tokens.drop_before(depth - longest)

    def drop_ahead(self) -> bool:
        """Take back the step that was scheduled behind the end of the answer, before the end was known.

        vLLM does the same with a streaming request whose turn has ended: the step goes on, and nothing of it is taken.

        Returns:
            False if there is nothing to take back: no step is under way, or the check that is due rides in it.
        """
        request = self.request
        if not request.num_output_placeholders or any(check.depth == self.feed.due for check in self.pending):
            return False
        self.pending = []
        request.num_computed_tokens -= request.num_output_placeholders
        request.num_output_placeholders = 0
        request.drop_stale_output = True
        request.num_stale_output_tokens = request.num_in_flight_tokens
        return True

    def take_off_end(self, hash_block_size: int) -> None:
        """Take the end-of-turn token off the request: the last check stands before it.

        vLLM sends the worker the number of output tokens with every step, so that the worker drops it too.
        """
        request = self.request
        sampled = request.num_output_tokens and request.output_token_ids[-1] in self.feed.end_token_ids
        if self.feed.due == self.depth - 1 and sampled:
            request._output_token_ids.pop()
            request._all_token_ids.pop()
            del request.block_hashes[request.num_tokens // hash_block_size :]
