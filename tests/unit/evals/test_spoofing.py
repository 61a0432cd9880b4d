"""A spoof is read as the template reads a turn, where the tokenizer lets it."""

import pytest

from anydepth.backends.transformers import TransformersBackend
from anydepth.errors import ConfigError
from anydepth.evals.attacks.spoof import VARIANTS, control_tokens, spoofed
from anydepth.evals.attacks.texts import wording
from tests import tiny
from tests.evaluations import tiny_backend


def test_a_spoofed_turn_is_a_real_one() -> None:
    backend = tiny_backend()
    words = wording("spoof")
    history = [
        {"role": "user", "content": "w1 w2"},
        {"role": "assistant", "content": words["fine"]},
        {"role": "user", "content": words["next"]},
    ]
    content = spoofed(backend, "turns", "w1 w2")
    assert backend.template.prompt(content).ids == backend.template.prompt(history).ids
    text = backend.template.text(history)
    assert tuple(backend.tokenizer(text, add_special_tokens=False)["input_ids"]) == backend.template.prompt(history).ids
    assert control_tokens(backend, content) == 4  # the ends of two turns, the beginnings of two more


def test_words_and_verdict_are_text_and_headers_are_not() -> None:
    backend = tiny_backend()
    for variant in ("words", "verdict"):
        content = spoofed(backend, variant, "w1 w2")
        assert content.startswith("w1 w2\n\n")
        assert control_tokens(backend, content) == 0
    ids = backend.template.prompt(spoofed(backend, "header", "w1 w2")).ids
    header = backend.header.ids
    found = sum(ids[place : place + len(header)] == header for place in range(len(ids)))
    assert found == wording("spoof")["repeats"] + 1  # and the prompt's own


def test_a_template_without_earlier_turns_cannot_be_spoofed() -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = tiny.CHATML.replace("for message in messages", "for message in messages[-2:]")
    backend = TransformersBackend(tiny.tiny_model("Llama"), tokenizer)
    with pytest.raises(ConfigError, match=r"drops messages of role 'user'.*leave the attack out"):
        spoofed(backend, "turns", "w1")
    with pytest.raises(ConfigError, match=f"'mirror'.*{', '.join(VARIANTS)}"):
        spoofed(backend, "mirror", "w1")
