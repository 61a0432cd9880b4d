"""Rails of NeMo Guardrails that let an anydepth server read the user's message and the answer to it.

    anydepth_scan_input     the message, before the model is called
    anydepth_scan_output    the message with the answer, all depths in one pass, before the answer leaves

What cannot be scanned does not pass, and is not called harmful: NeMo tells of an internal error, or rails.co says that
the message could not be checked.
"""

import logging
import os
from typing import Any

import httpx
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome

WHOLE = 10_000
"""Tokens of a chunk from which on a stream counts as scanned whole."""

logger = logging.getLogger("anydepth.nemo")


def init(app: Any) -> None:
    """Register the actions; NeMo calls it with the `LLMRails` before the first message.

    Raises:
        ValueError: The configuration would let text pass that was not scanned, or hide a block.
    """
    refuse(app.config)
    app.register_action(anydepth_scan_input)
    app.register_action(anydepth_scan_output)


def refuse(config: Any) -> None:
    """Raise ValueError for what would let text pass, or hide a block; warn of windows that are read alone."""
    rails = config.rails
    for name in ("input", "output"):
        if getattr(rails, name).parallel:
            raise ValueError(
                f"rails.{name}.parallel is true, and a rail that fails to run lets the text pass there; leave it out"
            )
    streaming = rails.output.streaming
    if streaming.enabled and streaming.stream_first:
        raise ValueError("rails.output.streaming.stream_first is true: tokens leave before the scan; set it to false")
    if streaming.enabled and config.enable_rails_exceptions:
        raise ValueError(
            "enable_rails_exceptions is true and rails.output.streaming.enabled too: a stream whose request is flagged "
            "would end empty, without a sign of it; set one of them to false"
        )
    if streaming.enabled and not 0 < streaming.context_size < streaming.chunk_size:
        raise ValueError(
            f"rails.output.streaming.context_size is {streaming.context_size} and chunk_size {streaming.chunk_size}: "
            "NeMo would have every token scanned; make context_size at least 1, and chunk_size larger than it"
        )
    if streaming.enabled and streaming.chunk_size < WHOLE:
        logger.warning(
            "rails.output.streaming.chunk_size is %d: each window of a stream is read without the beginning of the "
            "answer; set it to 100000 to have answers scanned whole",
            streaming.chunk_size,
        )


@action(name="anydepth_scan_input")
async def anydepth_scan_input(user_message: str | None = None, **_: Any) -> RailOutcome:
    """Scan the user's message.

    A scan that fails is an outcome and no error here: where an input rail raises, NeMo ends a stream without a word.
    """
    if not (user_message or "").strip():
        return RailOutcome.allow()
    try:
        return await scan([{"role": "user", "content": user_message}])
    except Exception as error:
        logger.error("the message could not be scanned: %s: %s", type(error).__name__, error)
        return RailOutcome.failure(reason="the message could not be scanned")


@action(name="anydepth_scan_output")
async def anydepth_scan_output(
    user_message: str | None = None, bot_message: str | None = None, **_: Any
) -> RailOutcome:
    """Scan the answer, behind the user's message.

    Raises:
        ValueError: There is an answer, and no message that it answers.
    """
    if not (bot_message or "").strip():
        return RailOutcome.allow()
    if not (user_message or "").strip():
        raise ValueError("there is no user message that the answer could be scanned behind; pass prompt or messages")
    turns = [{"role": "user", "content": user_message}, {"role": "assistant", "content": bot_message}]
    return await scan(turns)


async def scan(messages: list[dict[str, Any]]) -> RailOutcome:
    """Ask the server; raises what httpx raises if it gives no verdict.

    The environment says where it is: ANYDEPTH_API_BASE (with `/v1`; default http://127.0.0.1:8000/v1) and
    ANYDEPTH_API_KEY.
    """
    base = os.environ.get("ANYDEPTH_API_BASE") or "http://127.0.0.1:8000/v1"
    key = os.environ.get("ANYDEPTH_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=30) as client:
        reply = await client.post("moderations", json={"input": messages})
    reply.raise_for_status()
    (result,) = reply.json()["results"]
    if result["flagged"] is False:
        return RailOutcome.allow()
    report = {name: result["anydepth"][name] for name in ("depth", "score", "reason")}
    logger.info("blocked: %s", report)
    return RailOutcome.block(reason=f"The conversation was flagged at depth {report['depth']}.", metadata=report)
