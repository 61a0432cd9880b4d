"""Write a blocked answer in the shapes that most clients show as one; docs/clients.md has what each of them does.

The records are those of OpenAI's API: a `choice` of a reply, its `message`, its `delta`.
"""

from collections.abc import Mapping
from typing import Any

from anydepth.guard_report import GuardReport

Record = dict[str, Any]


def refused_text(refusal: str, *, wrote: bool) -> str:
    """The refusal as it stands behind the text that was released; `wrote` says whether there is some."""
    return ("\n\n" if wrote else "") + refusal


def refused_message(text: str, refusal: str, *, structured: bool = False) -> Record:
    """`content` and `refusal` of a blocked message.

    Args:
        text: What was released.
        refusal: Text in place of what is withheld.
        structured: Whether the client asked for JSON or for a call. Half of it is of no use, and text behind it breaks
            the parsers: the refusal then stands alone, in the field that they look at before they parse.
    """
    if structured:
        return {"content": None, "refusal": refusal}
    return {"content": text + refused_text(refusal, wrote=bool(text.strip())), "refusal": None}


def refused_delta(refusal: str, *, wrote: bool, structured: bool = False) -> Record:
    """The `delta` of a blocked stream's last chunk; see `refused_message`."""
    return {"refusal": refusal} if structured else {"content": refused_text(refusal, wrote=wrote)}


def sign(choice: Record, report: GuardReport) -> None:
    """Write how the guard ended an answer into its choice; of a stream, into its last chunk.

    `anydepth` has the report. A chunk of a chat has it in `delta.provider_specific_fields` as well, the one place that
    LiteLLM passes on. A blocked answer has `finish_reason` and Azure's `content_filter_results` besides.
    """
    choice["anydepth"] = record = report.record()
    if "delta" in choice:
        choice["delta"]["provider_specific_fields"] = {"anydepth": record}
    if report.halted:
        choice["finish_reason"] = "content_filter"
        choice["content_filter_results"] = filter_results()


def filter_results() -> Record:
    """A block in the form of Azure's `content_filter_results`; it has one category, and one severity."""
    return {"anydepth": {"filtered": True, "severity": "high"}}


def all_blocked(choices: list[Mapping[str, Any]]) -> bool:
    """Whether a reply has choices, and all of them are blocked."""
    return bool(choices) and all(choice["anydepth"]["halted"] for choice in choices)
