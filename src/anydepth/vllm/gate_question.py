"""What the front asks the engine about a proposed tool call, as JSON that travels with a request of vLLM's."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from anydepth.errors import BadRequest
from anydepth.templates.prompt import Prompt
from anydepth.templates.proposed_call import CallPrompt, ProposedCall

GATE = "gate"
"""Name of the question beside the guard's options in `SamplingParams.extra_args["anydepth"]`."""

_Count = Annotated[int, Strict(), Field(ge=0)]


class GateQuestion(BaseModel):
    """Whether the call at the end of the request's prompt may be run.

    Attributes:
        id: Id of the judgement, in the audit trail.
        tool: Name of the tool that is called.
        arguments: JSON text of its arguments, for an audit that keeps text; else empty.
        prefill: Length of the turn with the call, in tokens: all of the prompt that is the answer's.
        before: Depth at which the call begins, in tokens.
        control: Whether the reading before the call is asked for.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    tool: str
    arguments: str = ""
    prefill: Annotated[_Count, Field(ge=1)]
    before: _Count
    control: bool = True

    @classmethod
    def read(cls, record: Any) -> "GateQuestion":
        """The question in a request; BadRequest if it is none."""
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            each = error.errors(include_url=False)[0]
            name = ".".join(("anydepth", GATE, *map(str, each["loc"])))
            raise BadRequest(f"{name}: {each['msg']}; send the question of POST /v1/gate", name) from error

    def call(self, ids: Sequence[int]) -> CallPrompt:
        """The prompt with its call; the arguments stay in its tokens. BadRequest if they are too few."""
        if not self.before < self.prefill < len(ids):
            raise BadRequest(
                f"the call begins at {self.before} of a turn of {self.prefill} tokens, in a prompt of {len(ids)}; send "
                "the question of POST /v1/gate",
                f"anydepth.{GATE}",
            )
        none: Mapping[str, Any] = {}
        return CallPrompt(ProposedCall(self.tool, none), Prompt(tuple(ids), self.prefill), self.before)
