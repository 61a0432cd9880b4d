"""What is appended instead of the Safety Tokens in control experiments (paper, section 3)."""

import random

from anydepth.backends.protocol import Reader
from anydepth.errors import ConfigError, TemplateError

CONTROLS = ("newline", "random", "user")
_MARKS = ("anydepthanswermark", "anydepthusermark")


def suffix_ids(backend: Reader, name: str) -> tuple[int, ...]:
    """Token ids of a control.

    `newline` is one line break; `random` as many ordinary tokens as the header has, the same for every call; `user` the
    tokens that open the user's turn where the header opens the assistant's.

    Raises:
        ConfigError: There is no control of that name.
        TemplateError: The template does not say how a user's turn follows an answer.
    """
    tokenizer = backend.template.tokenizer
    if name == "newline":
        return tuple(tokenizer("\n", add_special_tokens=False)["input_ids"])
    if name == "random":
        special = set(getattr(tokenizer, "all_special_ids", ()))
        # the first ids of a large vocabulary are bytes and reserved tokens
        first = 1000 if len(tokenizer) > 2000 else 0
        ordinary = [i for i in range(first, min(len(tokenizer), 30_000)) if i not in special]
        return tuple(random.Random(0).sample(ordinary, len(backend.header.ids)))
    if name == "user":
        answer, question = _MARKS
        turns = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": question},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        if answer not in text or question not in text:
            raise TemplateError("the chat template drops a user's turn after an answer; there is no user header")
        between = text.split(answer, 1)[1].split(question, 1)[0]
        return tuple(tokenizer(between, add_special_tokens=False)["input_ids"])
    raise ConfigError(f"suffix is {name!r}; choose header or one of {', '.join(CONTROLS)}")
