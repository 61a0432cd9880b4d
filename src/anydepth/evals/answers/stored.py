"""Stored answers as transcripts."""

from dataclasses import replace

from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.evals.context import Context
from anydepth.evals.transcript import Transcript


def stored(context: Context, key: str, row: Conversation, tokens: int) -> Transcript:
    """The stored answer of `row`, its first `tokens` tokens, as if the model had written it."""
    prompt = context.prompt(row, prefill=row.response)
    question, answer = prompt.ids[: prompt.start], prompt.ids[prompt.start :]
    if not answer:
        raise ConfigError(f"suite {context.suite}: conversation {row.id!r} has no answer to scan; give one")
    return cut(Transcript(key, replace(prompt, ids=question, prefill=0), answer, "stop", 1), tokens)


def cut(transcript: Transcript, tokens: int) -> Transcript:
    """The first `tokens` tokens of an answer."""
    if len(transcript.token_ids) <= tokens:
        return transcript
    return replace(transcript, token_ids=transcript.token_ids[:tokens], finish_reason="length", end_tokens=0)
