"""What a server needs besides its model is opened first: what cannot be had is said at once, with exit code 2."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anydepth.audit.trail import open_audit
from anydepth.cli import app
from anydepth.errors import ConfigError
from anydepth.server.resources import Opened, check_place, listening, opening
from anydepth.settings import parse_settings

HERE = "127.0.0.1"


@pytest.fixture
def busy() -> Iterator[int]:
    """A port that something listens at."""
    with socket.create_server((HERE, 0)) as taken:
        yield taken.getsockname()[1]


def settings_of(**tables: Any) -> Any:
    return parse_settings({"model": {"path": "org/model"}, "http": {"host": HERE, "port": 0}, **tables})


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HERE, port))
        except OSError:
            return False
    return True


@pytest.fixture
def loaded(monkeypatch) -> list[Any]:
    """Models that were loaded."""
    models: list[Any] = []

    def open_guard(model: Any, options: Any, external: Any) -> Any:
        models.append(model)
        raise RuntimeError("the model was loaded")

    monkeypatch.setattr("anydepth.cli.load.open_guard", open_guard)
    return models


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[http]\nport = {busy}", "port {busy} of 127.0.0.1 is in use; stop what listens there, or choose another"),
        ('[http]\nhost = "no..host"', "host 'no..host' cannot be found"),
        ('[http]\nhost = "192.0.2.1"', "host '192.0.2.1' is no address of this machine"),
        ('[http]\nport = 0\napi_key_file = "none"', "none: No such file or directory"),
        ('[http]\nport = 0\napi_key_file = "blank"', "blank has no key in it"),
        ('[http]\nport = 0\napi_key_env = "NO_SUCH_KEY"', "[http] api_key_env is NO_SUCH_KEY, which is not set"),
        ('[http]\nport = 0\napi_key_env = "EMPTY_KEY"', "the environment variable EMPTY_KEY is set and empty"),
        ('[http]\nport = 0\n[audit]\nkind = "jsonl"\npath = "file/audit.jsonl"', "[audit] path"),
        ('[http]\nport = 0\n[audit]\nkind = "jsonl"\npath = "."', "[audit] path"),
        ('[http]\nport = 0\n[audit]\nkind = "sqlite"\npath = "a"', "jsonl"),
        ('[http]\nport = 0\n[guard]\nprobe = "none.safetensors"', "none.safetensors"),
        ('[http]\nport = 0\n[guard]\nprobe = "file"', "file"),
        ('[http]\nport = 0\n[tools]\nformat = "morse"', "[tools] format"),
    ],
)
def test_what_cannot_be_had_is_said_before_a_model_is_loaded(
    monkeypatch, tmp_path, loaded, busy, engine, toml, words
):  # fmt: skip
    monkeypatch.setattr("anydepth.vllm.launch.find_spec", lambda _: object())
    monkeypatch.setattr("os.execve", lambda *command: loaded.append(command))
    monkeypatch.setenv("EMPTY_KEY", " ")
    (tmp_path / "blank").write_text("# no key yet\n")
    (tmp_path / "file").write_text("this is neither a folder nor a probe")
    config = tmp_path / "guard.toml"
    config.write_text(toml.replace("{busy}", str(busy)))
    result = CliRunner().invoke(app, ["serve", "org/model", "--engine", engine, "--config", str(config)])
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and words.replace("{busy}", str(busy)) in said and not loaded, said


def test_flags_of_vllm_may_choose_another_address(monkeypatch, busy):
    commands: list[Any] = []
    monkeypatch.setattr("anydepth.vllm.launch.find_spec", lambda _: object())
    monkeypatch.setattr("os.execve", lambda *command: commands.append(command))
    options = ["serve", "org/model", "--engine", "vllm", "--host", HERE, "--port", str(busy)]
    assert CliRunner().invoke(app, options).exit_code == 2 and not commands
    CliRunner().invoke(app, [*options, "--", "--port=8123"])
    assert commands


def test_a_second_server_does_not_get_the_port_while_the_first_loads_its_model():
    with opening(settings_of()) as opened:
        (first,) = opened.sockets
        port = first.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"port {port} of {HERE} is in use"),
            opening(settings_of(http={"host": HERE, "port": port})),
        ):
            pytest.fail("two servers had one port")
        first.close()


def test_everything_is_closed_again_if_the_model_cannot_be_loaded(tmp_path):
    audit = {"kind": "jsonl", "path": str(tmp_path / "audit.jsonl")}
    seen: list[Opened] = []

    def serve() -> None:
        with opening(settings_of(audit=audit)) as opened:
            seen.append(opened)
            assert opened.sockets[0].fileno() >= 0
            raise RuntimeError("no model")

    with pytest.raises(RuntimeError, match="no model"):
        serve()
    assert seen[0].sockets[0].fileno() == -1
    open_audit(settings_of(audit=audit).audit).close()  # its lock is free again


def test_what_was_opened_stays_open():
    with opening(settings_of()) as opened:
        pass
    assert not is_free(opened.sockets[0].getsockname()[1])
    opened.sockets[0].close()


def test_a_look_leaves_nothing_open(tmp_path: Path):
    audit = {"kind": "jsonl", "path": str(tmp_path / "audit.jsonl")}
    (free,) = listening(HERE, 0)
    port = free.getsockname()[1]
    free.close()
    check_place(settings_of(audit=audit, http={"host": HERE, "port": port}))
    assert is_free(port)


@pytest.mark.parametrize("host", ["localhost", "", HERE])
def test_all_addresses_of_a_host_get_the_same_port(host):
    sockets = listening(host, 0)
    try:
        assert len({each.getsockname()[1] for each in sockets}) == 1 and sockets[0].getsockname()[1] > 0
    finally:
        for each in sockets:
            each.close()


def test_a_server_that_cannot_start_is_no_halted_answer(monkeypatch):
    """Uvicorn's own exit code for it is 3, which says of this command that an answer was halted."""
    from anydepth.server.engine.engine import EngineError
    from anydepth.server.run import serve
    from tests.server.scripted_server import engine_of

    settings = settings_of()
    engine = engine_of(settings)

    async def fails() -> None:
        raise RuntimeError("the thread cannot be started")

    monkeypatch.setattr(engine, "start", fails)
    monkeypatch.setattr("anydepth.server.run.set_up_logging", lambda table: None)
    with pytest.raises(EngineError, match="the server could not start; its log says why"):
        serve(lambda: engine, settings)
