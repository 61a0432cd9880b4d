"""A proxy before an endpoint that takes token ids: chat, plain completions and prefills, with the Safety Tokens."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from anydepth.server.engine import open_upstream
from anydepth.templates import ChatTemplate
from anydepth.testing import ScriptedBackend
from tests.unit.apis.fake_api import ANSWER, NO, YES
from tests.unit.server.proxy_hosts import QUESTION, REFUSAL, ProxyHost

WHOLE = "".join(ANSWER)
CHAT: ChatTemplate = ScriptedBackend(["x"]).template


@pytest.fixture(scope="module")
def running() -> Iterator[ProxyHost]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_upstream, "_template", lambda upstream: CHAT)
        host = ProxyHost(upstream={"capability": "raw", "tokenizer": "t"})
    yield host
    host.stop()


@pytest.fixture
def proxy(running: ProxyHost) -> ProxyHost:
    running.follow(look_ahead=lambda prompt: YES)
    return running


def asked(proxy: ProxyHost) -> list[str]:
    """The prompts of all requests as text."""
    return [CHAT.words(body["prompt"]) for body in proxy.script.bodies]


def test_a_plain_text_is_continued_and_checked_behind_itself(proxy: ProxyHost) -> None:
    reply = proxy.client.completions.create(model="m", prompt="zero ", max_tokens=20)
    assert reply.choices[0].text == WHOLE and reply.usage is not None and reply.usage.completion_tokens == 9
    safety = "<|end|><|assistant|>"
    assert asked(proxy)[:3] == [f"zero {safety}", "zero ", f"zero one two {safety}"]


def test_a_plain_text_is_halted(proxy: ProxyHost) -> None:
    proxy.follow(look_ahead=lambda prompt: NO if "four" in CHAT.words(prompt) else YES)
    choice: Any = proxy.client.completions.create(model="m", prompt="zero ", max_tokens=20).choices[0]
    assert choice.text == f"one two \n\n{REFUSAL}" and choice.finish_reason == "content_filter"


def test_a_blank_text_is_refused(proxy: ProxyHost) -> None:
    with pytest.raises(openai.BadRequestError, match="prompt is an empty text"):
        proxy.client.completions.create(model="m", prompt="  ")


def test_a_prefill_is_continued_and_checked(proxy: ProxyHost) -> None:
    choice = proxy.ask(messages=[*QUESTION, {"role": "assistant", "content": "zero "}]).choices[0]
    assert choice.message.content == WHOLE
    opening = "<|user|>Count to eight.<|end|><|assistant|>"
    assert asked(proxy)[:3] == [opening, f"{opening}zero <|end|><|assistant|>", f"{opening}zero "]
