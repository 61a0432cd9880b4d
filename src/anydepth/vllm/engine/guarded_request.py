"""One guarded request inside the scheduler."""

from dataclasses import dataclass, field
from typing import Any

from anydepth.templates.template import Prompt
from anydepth.types import Score
from anydepth.vllm.engine.flow_feed import Watch
from anydepth.vllm.engine.held_output import Outgoing
from anydepth.vllm.engine.pending_check import Inquiry


@dataclass(slots=True, eq=False)
class Ward:
    """A request of vLLM's, its watch, and how its next check is being made.

    Attributes:
        request: vLLM's own request.
        watch: The flow of its answer.
        prompt: Its prompt, with what is prefill told apart.
        tell_checks: Whether the client may see every check.
        inside: Depths inside the prefill to check before the flow begins.
        start: Depth 0, read while the prompt itself is computed; None if that is done or cannot be.
        ride: The check that rides in the present step, behind the last token.
        children: Ids of the check requests that are being waited for.
        replies: What those said that have answered, a depth.
        held: True while the request is in none of vLLM's queues, until its child has answered.
        ending: Status and stop reason that vLLM ended the answer with; kept back until the last check is made.
        outgoing: What has not left yet.
    """

    request: Any
    watch: Watch
    prompt: Prompt
    tell_checks: bool = False
    inside: tuple[int, ...] = ()
    start: Inquiry | None = None
    ride: Inquiry | None = None
    children: set[str] = field(default_factory=set)
    replies: dict[int, Score | Exception] = field(default_factory=dict)
    held: bool = False
    ending: tuple[Any, Any] | None = None
    outgoing: Outgoing = field(default_factory=Outgoing)

    @property
    def depth(self) -> int:
        """Assistant tokens of the request as vLLM has it, an end of turn that was taken off left out."""
        return self.prompt.prefill + self.request.num_output_tokens

    @property
    def waits(self) -> bool:
        """True if a check is due that nothing is under way for."""
        if not self.watch.begun:
            return not self.children
        return self.watch.due is not None and self.start is None and self.ride is None and not self.children

    @property
    def goes_on(self) -> bool:
        """True if the request was held for checks that have all been made, and has not ended."""
        return self.held and not self.children and self.watch.begun and self.watch.due is None and not self.watch.over

    @property
    def decodes(self) -> bool:
        """True if the whole prompt is computed, and at most the last token is not."""
        return self.request.num_computed_tokens >= self.request.num_tokens - 1

    def settle(self) -> None:
        """Bring what the check requests said to the flow, once all have answered."""
        replies, self.replies = self.replies, {}
        if not self.watch.begun:
            prefill = self.prompt.prefill
            self.watch.begin({depth: reply for depth, reply in replies.items() if 0 < depth < prefill})
        while self.watch.due in replies:
            self.watch.answer(self.watch.due, replies.pop(self.watch.due))

    def take_off_end(self, hash_block_size: int) -> None:
        """Take the end-of-turn token off the request: the last check stands before it.

        The worker drops it too: vLLM tells it with every step how many output tokens there are.
        """
        request = self.request
        if self.watch.due == self.depth - 1 and request.num_output_tokens:
            request._output_token_ids.pop()
            request._all_token_ids.pop()
            del request.block_hashes[request.num_tokens // hash_block_size :]
