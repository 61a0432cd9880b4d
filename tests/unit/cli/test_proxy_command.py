"""`anydepth proxy`, up to the moment at which it listens."""

from pathlib import Path
from typing import Any

import pytest

from anydepth.errors import CapabilityError, ConfigError
from anydepth.server.engine.open_upstream import api_key, open_client, open_engine
from anydepth.settings import load_settings, parse_settings
from anydepth.upstream_settings import LIVE
from tests.unit.apis.fake_api import FakeApi, Script
from tests.unit.cli.conftest import Run

URL = "http://127.0.0.1:9/v1"


def upstream(**keys: Any) -> Any:
    return parse_settings({"upstream": {"url": URL, "model": "m", **keys}}).upstream


def said(run: Run, *given: str) -> str:
    """What the command says in one line; its exit code is 2."""
    result = run(*given)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "there is no url of an upstream; give --upstream URL, or [upstream] url in guard.toml"),
        (("--upstream", URL), "there is no model of an upstream; give --model NAME"),
        (("--upstream", "ftp://x", "--model", "m"), "upstream.url is 'ftp://x': give http:// or https://"),
        (("--upstream", "https://me:pw@x/v1", "--model", "m"), "without a user, a key or a query in it"),
        (("--upstream", URL, "--model", "m", "--capability", "raw"), 'raw" and tokenizer go together'),
        (("--upstream", URL, "--model", "m", "--key-env", "NO_SUCH"), "the environment variable NO_SUCH is not set"),
    ],
)
def test_what_cannot_be_is_told_at_once(run: Run, given: tuple[str, ...], words: str) -> None:
    assert words in said(run, "proxy", *given)


def test_a_provider_that_goes_on_with_a_cut_answer_is_refused_at_the_start(run: Run) -> None:
    api = FakeApi(Script(trailing="continues"))
    try:
        text = said(run, "proxy", "--upstream", f"{api.url}/v1", "--model", "m", "--port", "0")
    finally:
        api.close()
    assert "the provider continues an assistant message at the end" in text
    assert "'between' puts a user message between" in text


def test_an_upstream_that_cannot_be_reached_is_told(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "guard.toml"
    file.write_text(f'[upstream]\nurl = "{URL}"\nmodel = "m"\nretries = 0\n[http]\nport = 0\n')
    assert "m at 127.0.0.1 failed with APIConnectionError" in said(run, "proxy", "--config", str(file))


def test_serve_names_the_command_for_an_upstream(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "guard.toml"
    file.write_text(f'[upstream]\nurl = "{URL}"\nmodel = "m"\n')
    assert "`anydepth proxy` serves an upstream" in said(run, "serve", "--config", str(file))


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"guard": {"probe": "p.safetensors"}}, "[guard] probe = 'p.safetensors': a model behind an [upstream] has no"),
        ({"guard": {"detector": "probe"}}, "[guard] detector = 'probe'"),
        ({"guard": {"detector": "cascade"}}, "give [external] url and model, and no band"),
        ({"model": {"path": "org/m", "dtype": "float32"}}, "[model] path, dtype: no model is loaded beside"),
        ({"tools": {"format": "hermes"}}, "[tools] format = 'hermes': calls cannot be guarded"),
        ({"tools": {"gate": True}}, "[tools] gate = true: calls cannot be gated behind an [upstream]; drop it"),
        ({"tools": {"keep": False}}, "[tools] keep = false: an [upstream] keeps its caches itself; drop it"),
        ({"reasoning": {"release": "hidden"}}, "[reasoning] release: thoughts of an [upstream] never leave"),
    ],
)
def test_a_table_that_contradicts_an_upstream_is_named(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings({"upstream": {"url": URL}, **tables})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"capability": "raw"}, "go together"),
        ({"tokenizer": "org/m"}, "go together"),
        ({"template_kwargs": {"enable_thinking": False}}, 'template_kwargs go with capability = "raw"'),
        ({"key_env": "A", "key_file": "b"}, "key_env and key_file are both given; drop one"),
        ({"api": "anthropic", "capability": "raw", "tokenizer": "t"}, "needs a completions endpoint"),
        ({"api": "anthropic", "limit_field": "max_tokens"}, 'limit_field goes with api = "openai"'),
        ({"prices": {"prompt": -1.0, "completion": 1.0}}, "upstream.prices.prompt is -1.0"),
        ({"between": " "}, "upstream.between is ' ': give the text of a short user message"),
        ({"look_ahead": 0}, "upstream.look_ahead is 0"),
        ({"timeout_seconds": 0.0}, "upstream.timeout_seconds is 0.0"),
    ],
)
def test_keys_of_an_upstream_that_do_not_go_together(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        upstream(**keys)
    assert words in str(caught.value)


def test_the_score_mode_of_a_proxy() -> None:
    """An upstream that gives no log-probabilities is refused at the start, by name."""
    api = FakeApi(Script(first=lambda partial: [{"Sure": 0.5, "Sorry": 0.25}]))
    try:
        keys = {"url": f"{api.url}/v1", "model": "m", "retries": 0}
        settings = parse_settings({"upstream": keys, "guard": {"detector": "rethink-score"}})
        engine = open_engine(settings, open_client(settings.upstream))
        assert engine.facts.guard.policy.threshold == 0.5
        api.script.first = lambda partial: None
        with pytest.raises(CapabilityError, match="gives no log-probabilities"):
            open_engine(settings, open_client(settings.upstream))
    finally:
        api.close()


def test_an_upstream_has_defaults_of_its_own() -> None:
    settings = parse_settings({"upstream": {"url": URL}})
    assert (settings.guard.detector, settings.limits.live) == ("rethink", LIVE)
    chosen = parse_settings({"upstream": {"url": URL}, "limits": {"live": 3}, "guard": {"detector": "my.code:guard"}})
    assert (chosen.guard.detector, chosen.limits.live) == ("my.code:guard", 3)
    assert (parse_settings({}).guard.detector, parse_settings({}).limits.live) == ("probe", 4)


def test_paths_of_an_upstream_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "tok").mkdir()
    for tokenizer, place in (("tok", str(tmp_path / "tok")), ("org/model", "org/model")):
        text = f'[upstream]\nurl = "{URL}"\ncapability = "raw"\ntokenizer = "{tokenizer}"\nkey_file = "key"\n'
        (tmp_path / "guard.toml").write_text(text)
        table = load_settings(tmp_path / "guard.toml").upstream
        assert (table.tokenizer, table.key_file) == (place, str(tmp_path / "key"))


def test_config_check_names_fields_that_the_guard_sets_itself(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "guard.toml"
    file.write_text(f'[upstream]\nurl = "{URL}"\nrequest = {{n = 2}}\n')
    assert "request has n, which the guard sets itself" in said(run, "config", "check", str(file))


def test_config_check_names_a_policy_that_no_gate_can_halt_by(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "guard.toml"
    file.write_text('[guard]\npolicy = {name = "k_of_n", k = 2, n = 3}\n[tools]\ngate = true\n')
    assert "which one reading can never halt" in said(run, "config", "check", str(file))


# -- the key -------------------------------------------------------------------------------------------------------


def test_a_key_goes_to_the_host_that_it_is_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "for-openai")
    monkeypatch.setenv("MINE", "for-mine")
    assert api_key(upstream(url="https://api.openai.com/v1")) == "for-openai"
    assert api_key(upstream()) == "none", "another host does not get the key of OpenAI"
    assert api_key(upstream(key_env="MINE")) == "for-mine"
    (tmp_path / "key").write_text("in-a-file\n")
    assert api_key(upstream(key_file=str(tmp_path / "key"))) == "in-a-file"


@pytest.mark.parametrize(("value", "state"), [(None, "not set"), (" ", "set and empty")])
def test_a_host_that_needs_a_key_is_not_asked_without(
    monkeypatch: pytest.MonkeyPatch, value: str | None, state: str
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("ANTHROPIC_API_KEY", value)
    with pytest.raises(ConfigError, match=f"ANTHROPIC_API_KEY is {state}; set it to the key for api.anthropic.com"):
        api_key(upstream(url="https://api.anthropic.com", api="anthropic"))


def test_a_key_file_has_one_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="has 2 lines with text; write the key alone into it"):
        api_key(upstream(key_file=str(tmp_path / "key")))


def test_the_client_has_what_the_table_says() -> None:
    client = open_client(upstream(timeout_seconds=7.0, retries=4))
    assert (str(client.base_url), client.timeout, client.max_retries) == (f"{URL}/", 7.0, 4)
    other = open_client(upstream(url="http://127.0.0.1:9/v1", api="anthropic"))
    assert str(other.base_url).rstrip("/") == "http://127.0.0.1:9", "its client adds the path"
