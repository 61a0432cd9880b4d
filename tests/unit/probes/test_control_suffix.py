"""The controls that are appended instead of the Safety Tokens."""

import pytest

from anydepth.errors import ConfigError, TemplateError
from anydepth.probes.states.control_suffix import CONTROLS, suffix_ids
from anydepth.testing import ScriptedBackend


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(["x"])


def test_newline_is_one_line_break(backend: ScriptedBackend) -> None:
    assert backend.decode_text(suffix_ids(backend, "newline")) == "\n"


def test_user_opens_the_users_turn_where_the_header_opens_the_assistants(backend: ScriptedBackend) -> None:
    text = backend.tokenizer.decode(suffix_ids(backend, "user"))
    assert text == "<|end|><|user|>"
    assert backend.tokenizer.decode(backend.header.ids) == "<|end|><|assistant|>"


def test_a_template_without_a_second_user_turn_has_no_user_header(backend: ScriptedBackend, monkeypatch) -> None:
    whole = backend.tokenizer.apply_chat_template
    monkeypatch.setattr(backend.tokenizer, "apply_chat_template", lambda turns, **_: whole(turns[:1]))
    with pytest.raises(TemplateError, match="no user header"):
        suffix_ids(backend, "user")


def test_an_unknown_control_is_refused(backend: ScriptedBackend) -> None:
    with pytest.raises(ConfigError, match=f"choose header or one of {', '.join(CONTROLS)}"):
        suffix_ids(backend, "comma")
