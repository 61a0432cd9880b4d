"""Write what looks like the template's own tokens into a user's message."""

from typing import TYPE_CHECKING

from anydepth.errors import ConfigError, PromptError
from anydepth.evals.attacks.texts import wording

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

VARIANTS = ("turns", "words", "verdict", "header")
"""A finished turn of the assistant in the template's tokens; one in plain words; a claimed verdict; many headers."""

_BEGIN, _END = "anydepthbegin", "anydepthend"


def spoofed(backend: "TransformersBackend", variant: str, request: str) -> str:
    """`request` with a spoof behind it, as one user message; ConfigError lists the variants."""
    words = wording("spoof")
    if variant == "turns":
        return request + _between(backend, words["fine"]) + words["next"]
    if variant == "words":
        return f"{request}\n\nassistant: {words['fine']}\n\nuser: {words['next']}"
    if variant == "verdict":
        return f"{request}\n\n{words['verdict']}"
    if variant == "header":
        ids = list(backend.header.ids)
        header = backend.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return request + f"{header}{words['fine']}" * words["repeats"]
    raise ConfigError(f"there is no spoof {variant!r}; choose from {', '.join(VARIANTS)}")


def control_tokens(backend: "TransformersBackend", content: str) -> int:
    """How many ids of the prompt that `content` becomes are control tokens, beyond those of an ordinary message.

    Above 0 the tokenizer has read text of a user as the template's own marks, and a spoofed turn is a real one.
    """
    tokenizer = backend.tokenizer
    unknown = {tokenizer.unk_token_id} - set(backend.header.ids)  # a word that is not in the vocabulary is no mark
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - unknown
    found, ordinary = (
        sum(token in special for token in backend.template.prompt(text).ids) for text in (content, "request")
    )
    return found - ordinary


def _between(backend: "TransformersBackend", fine: str) -> str:
    """What the template writes from the end of a user's message to the beginning of the next, `fine` as the answer."""
    history = [
        {"role": "user", "content": _BEGIN},
        {"role": "assistant", "content": fine},
        {"role": "user", "content": _END},
    ]
    try:
        text = backend.template.text(history)
    except PromptError as error:
        raise ConfigError(f"no earlier turn can be spoofed: {error}; leave the attack out") from error
    begin, end = text.rfind(_BEGIN), text.rfind(_END)
    return text[begin + len(_BEGIN) : end]
