"""`anydepth inspect` on a made-up backend."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from anydepth.backends.protocol import ModelIdentity
from anydepth.cli import load
from anydepth.templates.template import ChatTemplate, Header
from tests.unit.cli.conftest import Run
from tests.unit.test_template import make


def template() -> ChatTemplate:
    """A template whose prompts open thoughts; the header of the backend below is not its own."""
    return ChatTemplate(
        make(
            "{% for m in messages %}{{ '<|user|>' + m['content'] + '<|end|>' if m['role'] == 'user' else "
            "'<|assistant|>' + m['content'] + '<|end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
        )
    )


TRIALS = [
    {"check": "state", "works": True, "detail": "at 15.input_layernorm@3: two readings differ by 0.0e+00"},
    {"check": "packed", "works": False, "detail": "a packed pass failed in a trial"},
    {"check": "look-ahead", "works": True, "detail": "text and next token after the header, on a fork"},
]


def backend(*, packed_reason: str | None = None, **facts: Any) -> Any:
    return SimpleNamespace(
        identity=ModelIdentity("org/m", "abc123", "llama", 576, 30, "f00d"),
        header=Header((2, 198, 1, 520), 3, (), ("<|im_end|>", "\\n", "<|im_start|>", "assistant")),
        template=template(),
        self_test=lambda: [dict(each) for each in TRIALS],
        describe=lambda: {
            "layers": 30,
            "hidden_size": 576,
            "default_site": "15.input_layernorm",
            "site_reason": None,
            "cache_reason": None,
            "context_length": 8192,
            "cache": [{"layer": "DynamicLayer", "fork": "shared", "count": 30}],
            "packed": packed_reason is None,
            "packed_reason": packed_reason,
            "ride": "never",
            "rides": False,
            "ride_reason": None,
            **facts,
        },
    )


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "open_backend", lambda model: backend())
    monkeypatch.setattr("anydepth.cli.inspect.find_shipped", lambda backend: object())


def test_marks_the_read_token(run: Run, opened: None) -> None:
    result = run("inspect", "org/m")
    assert result.exit_code == 0, result.stderr
    marked = [line for line in result.stdout.splitlines() if "<- read token" in line]
    assert len(marked) == 1
    assert "520  assistant" in marked[0]
    for fact in ("30 x DynamicLayer, fork shared", "thinking, answer", "15.input_layernorm", "revision abc123"):
        assert fact in result.stdout


def test_shows_how_prompts_end_and_answers_begin(run: Run, opened: None, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {line[:22].strip(): line[22:].strip() for line in run("inspect", "org/m").stdout.splitlines()}
    assert lines["a prompt ends in"] == r"<|end|><|assistant|><think>\n"
    assert lines["an answer opens with"] == r"\n</think>\n\n"
    assert lines["channels"] == "thinking, answer; thoughts stand in <think> … </think>"
    record = json.loads(run("inspect", "org/m", "--json").stdout)
    assert (record["prompt_end"], record["answer_opener"]) == ("<|end|><|assistant|><think>\n", "\n</think>\n\n")
    assert record["thoughts"] == ["<think>", "</think>"]
    plain = backend()
    plain.template = ChatTemplate(
        make("{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}")
    )
    monkeypatch.setattr(load, "open_backend", lambda model: plain)
    shown = " ".join(run("inspect", "org/m").stdout.split())
    assert "no read token in it: at depth 0 the header is put behind it" in shown


def test_template_variables_reach_the_template(run: Run, opened: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(load, "open_backend", lambda model: asked.append(model) or backend())
    given = ("--template-kwarg", "enable_thinking=false", "--template-kwarg", "effort=low", "--template-kwarg", "n=3")
    assert run("inspect", "org/m", *given).exit_code == 0
    assert asked[0].template_kwargs == {"enable_thinking": False, "effort": "low", "n": 3}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("enable_thinking", "write NAME=VALUE, e.g. enable_thinking=false"),
        ("a b=1", "write NAME=VALUE"),
        ("enable_thinking=False", "enable_thinking=False would be a text; write enable_thinking=false"),
        ("tokenize=true", "'tokenize', which anydepth sets itself"),
    ],
)
def test_template_variables_that_are_wrong(run: Run, opened: None, value: str, message: str) -> None:
    result = run("inspect", "org/m", "--template-kwarg", value)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_says_why_a_scan_takes_many_passes(run: Run, opened: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "open_backend", lambda model: backend(packed_reason="layer 3 is recurrent"))
    monkeypatch.setattr("anydepth.cli.inspect.find_shipped", lambda backend: None)
    result = run("inspect", "org/m")
    assert "layer 3 is recurrent" in result.stdout
    assert "pass --probe" in result.stdout


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, "on a fork of the cache (--ride never)"),
        ({"ride": "auto", "rides": True}, "ride in the decode step"),
        ({"ride": "auto", "ride_reason": "it is recurrent"}, "on a fork of the cache (cannot ride: it is recurrent)"),
    ],
)
def test_says_how_a_check_reads(
    run: Run, opened: None, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], said: str
) -> None:
    asked = []
    monkeypatch.setattr(load, "open_backend", lambda model: asked.append(model) or backend(**facts))
    lines = {line[:22].strip(): line[22:].strip() for line in run("inspect", "org/m").stdout.splitlines()}
    assert lines["checks"] == said
    assert run("inspect", "org/m", "--ride", "auto").exit_code == 0
    assert [model.ride for model in asked] == ["never", "auto"]


def test_json(run: Run, opened: None) -> None:
    record = json.loads(run("inspect", "org/m", "--json").stdout)
    assert record["header"][3] == {"id": 520, "token": "assistant", "read": True}
    assert record["header"][0]["read"] is False
    expected = {
        "model": "org/m",
        "revision": "abc123",
        "model_type": "llama",
        "layers": 30,
        "hidden_size": 576,
        "default_site": "15.input_layernorm",
        "published_site": None,
        "channels": ["thinking", "answer"],
        "header_source": "derived",
        "packed": True,
        "shipped_probe": True,
    }
    assert {key: record[key] for key in expected} == expected


def test_prove_shows_the_trials(run: Run, opened: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "trials" not in json.loads(run("inspect", "org/m", "--json").stdout)
    result = run("inspect", "org/m", "--prove")
    assert result.exit_code == 0, result.stderr  # without a packed pass, forks are read
    shown = " ".join(result.stdout.split())
    assert "trial: state works: at 15.input_layernorm@3: two readings differ by 0.0e+00" in shown
    assert "trial: packed does not work: a packed pass failed in a trial" in shown
    failing = backend()
    failing.self_test = lambda: [{"check": "state", "works": False, "detail": "it differs by 9 %"}, *TRIALS[1:]]
    monkeypatch.setattr(load, "open_backend", lambda model: failing)
    result = run("inspect", "org/m", "--prove", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["trials"][0]["detail"] == "it differs by 9 %"


def test_a_model_without_blocks_or_a_forkable_cache(run: Run, opened: None, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = backend().describe()
    without = {"default_site": None, "site_reason": "no list of blocks", "cache": [], "cache_reason": "layer 2 is odd"}
    other = backend()
    other.describe = lambda: facts | without
    monkeypatch.setattr(load, "open_backend", lambda model: other)
    shown = " ".join(run("inspect", "org/m").stdout.split())
    assert "read at nowhere: no list of blocks" in shown and "cache layer 2 is odd" in shown
