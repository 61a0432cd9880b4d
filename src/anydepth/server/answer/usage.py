"""Count the tokens of an answer, for clients and metrics."""

from anydepth.types import Answer


def token_counts(answer: Answer) -> tuple[int, int]:
    """Tokens of the prompt, the prefill included, and tokens that were generated, withheld ones included.

    Over an API they are the provider's own. Where it told none, as of a stream that was closed at a halt, they are
    lower bounds: no prompt tokens, and one generated token a piece.
    """
    if answer.usage is None:
        return answer.prompt_tokens + answer.prefill_tokens, answer.generated_tokens
    told = answer.usage["answers"]
    if told["requests"] == told["requests_without_usage"]:
        return 0, answer.generated_tokens
    return told["prompt_tokens"], told["completion_tokens"]
