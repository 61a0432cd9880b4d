"""`guard.toml`: read, refused with the key named, and described by a schema."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anydepth import Adaptive, Every, GuardConfig, KofN, Threshold
from anydepth.cli import app
from anydepth.errors import BadRequest, ConfigError
from anydepth.guard_overrides import GuardOverrides, apply_overrides
from anydepth.server.http.app import api_keys
from anydepth.settings import OverridesTable, load_settings, parse_settings, settings_schema

WHOLE = """
[model]
path = "model"
[guard]
probe = "probes/p.safetensors"
policy = {name = "k_of_n", k = 2, n = 3, threshold = 0.6}
interval = 10
[overrides]
interval = {min = 5, max = 20}
threshold = {min = 0.2, max = 0.6}
release = ["hold"]
[overrides.policies]
strict = {name = "threshold", threshold = 0.3}
[audit]
kind = "jsonl"
path = "trail/audit.jsonl"
"""


def test_a_file(tmp_path: Path):
    path = tmp_path / "guard.toml"
    path.write_text(WHOLE)
    (tmp_path / "model").mkdir()
    settings = load_settings(path)
    assert settings.guard.build_policy() == KofN(2, 3, 0.6) and settings.guard.build_schedule() == Every(10)
    assert settings.model.path == str(tmp_path / "model")
    assert settings.guard.probe == str(tmp_path / "probes/p.safetensors")
    assert settings.audit.path == str(tmp_path / "trail/audit.jsonl")


def test_an_empty_file_has_the_defaults():
    settings = parse_settings({})
    assert settings.guard.release == "hold" and settings.guard.on_error == "closed"
    assert settings.guard.build_policy() is None and settings.guard.build_schedule() == Every(25)
    assert settings.audit.on_error == "closed" and not settings.logging.log_text
    assert settings.overrides.release == [] and settings.overrides.interval is None
    assert settings.http.host == "127.0.0.1"


def test_variables_of_the_chat_template():
    assert parse_settings({}).model.template_kwargs == {}
    given = parse_settings({"model": {"template_kwargs": {"enable_thinking": False}}})
    assert given.model.template_kwargs == {"enable_thinking": False}
    with pytest.raises(ConfigError, match=r"model\.template_kwargs is .*'tokenize', which anydepth sets itself"):
        parse_settings({"model": {"template_kwargs": {"tokenize": True}}})


def test_variables_of_the_chat_template_reach_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from anydepth.cli import load

    opened = []

    def open_guard(model, *_):
        opened.append(model)
        raise ConfigError("loaded")

    monkeypatch.setattr(load, "open_guard", open_guard)
    path = tmp_path / "guard.toml"
    path.write_text('[model]\npath = "org/model"\ntemplate_kwargs = {enable_thinking = false}\n')
    CliRunner().invoke(app, ["serve", "--config", str(path), "--template-kwarg", "effort=low"])
    assert [model.template_kwargs for model in opened] == [{"enable_thinking": False, "effort": "low"}]


def test_origins():
    origins = ["*", "http://localhost:3000", "https://chat.example.org", "http://[::1]:8080", "app://-"]
    assert parse_settings({"http": {"cors_origins": origins}}).http.cors_origins == origins


def test_adaptive():
    assert parse_settings({"guard": {"adaptive": {"widest": 30}}}).guard.build_schedule() == Adaptive(widest=30)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"gaurd": {}}, "there is no key 'gaurd'"),
        ({"guard": {"treshold": 1}}, "there is no key 'guard.treshold'"),
        ({"guard": {"release": "never"}}, "guard.release is 'never'"),
        ({"guard": {"interval": 0}}, "guard.interval is 0"),
        ({"guard": {"policy": {"name": "vote"}}}, "choose one of threshold"),
        ({"guard": {"policy": {"name": "threshold", "threshold": 2}}}, "guard.policy"),
        ({"guard": {"adaptive": {"x": 1}}}, "adaptive takes"),
        ({"guard": {"interval": 5, "adaptive": {"widest": 30}}}, "both given"),
        ({"overrides": {"interval": {"min": 9, "max": 3}}}, "min (9) is above max (3)"),
        ({"overrides": {"policies": {"a": {"name": "x"}}}}, "overrides.policies"),
        ({"limits": {"queue": -1}}, "limits.queue is -1"),
        ({"http": {"cors_origins": ["https://a.example/"]}}, "'https://a.example/' is no origin; write https://HOST"),
        ({"http": {"cors_origins": ["a.example"]}}, "'a.example' is no origin"),
        ({"http": {"cors_origins": ["https://A.example"]}}, "'https://A.example' is no origin"),
        ({"http": {"cors_origins": "*"}}, "http.cors_origins is '*'"),
        ({"http": {"port": 70000}, "audit": {"kind": "paper"}}, "audit.kind is 'paper'"),
        ({"audit": {"kind": "sqlite"}}, "audit.kind is 'sqlite': databases are not written any more; take \"jsonl\""),
        ({"audit": {"path": "a.sqlite"}}, "audit.path is 'a.sqlite': databases are not written any more; give a file"),
        ({"audit": {"path": "sqlite:///a"}}, "give a file of JSON lines"),
        ({"audit": {"path": ""}}, "audit.path is ''"),
        ({"audit": {"keep": 10_000_000}}, "audit.keep is 10000000"),
        ({"audit": {"path": "a\0b"}}, "audit.path is 'a\\x00b': a character of it is NUL"),
        ({"http": {"host": ""}}, "http.host is '': string should have at least 1 character"),  # it would be every host
        ({"http": {"api_key_file": ""}}, "http.api_key_file is ''"),
        ({"model": {"path": ""}}, "model.path is ''"),  # it would be the folder of guard.toml
        ({"guard": {"probe": ""}}, "guard.probe is ''"),
        ({"guard": {"interval": True}}, "guard.interval is True: input should be a valid integer"),
        ({"guard": {"policy": {"name": "threshold", "threshold": True}}}, "guard.policy.threshold is True: "),
        ({"console": {"enabled": "yes"}}, "console.enabled is 'yes': input should be a valid boolean"),
        ({"limits": {"timeout_seconds": math.inf}}, "limits.timeout_seconds is inf: input should be a finite number"),
        ({"overrides": {"threshold": {"min": 0, "max": math.nan}}}, "overrides.threshold.max is nan"),
        (
            {"guard": {"policy": {"name": "cusum", "drift": 0.1, "threshold": math.inf}}},
            "guard.policy.threshold is inf",
        ),
    ],
)
def test_what_is_wrong_is_named(table, words):
    with pytest.raises(ConfigError) as caught:
        parse_settings(table)
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[guard\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_settings(tmp_path / "bad.toml")


def test_a_file_and_its_keys_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbfsecret\r\nother\r\n")
    (tmp_path / "guard.toml").write_bytes(
        b'\xef\xbb\xbf[http]\r\napi_key_file = "keys"\r\napi_key_env = "NO_SUCH_KEY"\r\n'
    )
    settings = load_settings(tmp_path / "guard.toml")
    assert api_keys(settings.http) == ["secret", "other"]
    (tmp_path / "keys").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"api_key_file .*keys is not UTF-8 text"):
        api_keys(settings.http)


def test_the_commands(tmp_path):
    path = tmp_path / "guard.toml"
    path.write_text(WHOLE)
    good = CliRunner().invoke(app, ["config", "check", str(path), "--json"])
    assert good.exit_code == 0 and '"interval": 10' in good.output
    path.write_text("[guard]\nrelease = 5\n")
    bad = CliRunner().invoke(app, ["config", "check", str(path)])
    assert bad.exit_code == 2 and "guard.release is 5" in bad.output
    schema = json.loads(CliRunner().invoke(app, ["config", "schema"]).output)
    assert schema == json.loads(json.dumps(settings_schema()))
    assert set(schema["properties"]) == {
        "model", "guard", "blocked", "reasoning", "tools", "overrides", "limits", "http", "audit", "logging", "console",
        "upstream", "external",
    }  # fmt: skip


def test_serve_wants_a_model(tmp_path):
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == 2 and "there is no model to serve" in result.output


# -- what clients may change -------------------------------------------------------------------------------------------

GUARD = GuardConfig(policy=Threshold(0.5), schedule=Every(25, doubling=False))


def allowed(**table) -> OverridesTable:
    return parse_settings({"overrides": table}).overrides


def test_within_bounds():
    table = allowed(interval={"min": 5, "max": 20}, threshold={"min": 0.2, "max": 0.6}, release=["monitor"])
    changed = apply_overrides(GUARD, GuardOverrides(interval=5, threshold=0.6, release="monitor"), table)
    assert changed == GuardConfig(policy=Threshold(0.6), schedule=Every(5, doubling=False), release="monitor")
    assert apply_overrides(GUARD, None, table) is GUARD
    assert apply_overrides(GUARD, GuardOverrides(release="hold"), allowed()) == GUARD


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (GuardOverrides(interval=4), "choose 5 to 20"),
        (GuardOverrides(interval=21), "choose 5 to 20"),
        (GuardOverrides(threshold=0.7), "choose 0.2 to 2"),
        (GuardOverrides(release="eager"), "choose hold, monitor"),
        (GuardOverrides(policy="mild"), "choose strict"),
        (GuardOverrides(checks=True), "the operator allows no other"),
    ],
)
def test_beyond_them(wanted, words):
    table = allowed(
        interval={"min": 5, "max": 20}, threshold={"min": 0.2, "max": 2}, release=["monitor"],
        policies={"strict": {"name": "threshold", "threshold": 0.3}},
    )  # fmt: skip
    if wanted.threshold:
        wanted = GuardOverrides(threshold=0.1)
    with pytest.raises(BadRequest) as caught:
        apply_overrides(GUARD, wanted, table)
    assert words in str(caught.value)
    with pytest.raises(BadRequest, match="in \\[0, 1\\]"):  # the bounds allow it, the policy does not
        apply_overrides(GUARD, GuardOverrides(threshold=1.5), table)
