"""The command line as a whole: help, errors, exit codes, what it imports."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from anydepth.cli import load, main
from anydepth.cli.options import ModelOptions
from anydepth.cli.shared_options import Loading, grouped
from anydepth.errors import AnydepthError, CheckError, ModelError
from tests.unit.cli.conftest import Run, ScriptedGuard

COMMANDS = [
    "demo",
    "generate",
    "scan",
    "serve",
    "proxy",
    "collect",
    "fit",
    "calibrate",
    "probe",
    "config",
    "inspect",
    "bench",
]


def test_help_names_every_command(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)
    assert "Exit codes" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    "given", [["frobnicate"], ["generate"], ["scan", "m", "f"], ["generate", "m", "--release", "x"]]
)
def test_wrong_usage_is_exit_2(run: Run, given: list[str]) -> None:
    assert run(*given).exit_code == 2


def failing(error: Exception) -> object:
    def open_guard(*_: object) -> None:
        raise error

    return open_guard


@pytest.mark.parametrize(
    ("error", "code"),
    [(ModelError("model 'org/m' cannot be loaded:\n[red]no such[/] model"), 2), (CheckError("no score"), 1)],
)
def test_an_error_is_one_red_line_without_traceback(
    error: AnydepthError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "open_guard", failing(error))
    with pytest.raises(SystemExit) as left:
        main(["generate", "org/m", "x"])
    assert left.value.code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.rstrip().splitlines()[-1] == f"error: {' '.join(str(error).split())}"
    assert "Traceback" not in captured.err


def test_debug_keeps_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ModelError("broken")
    monkeypatch.setattr(load, "open_guard", failing(error))
    assert run("--debug", "generate", "org/m", "x").exception is error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device", "/tmp/x"), "error: /tmp/x: No space left on device"),
        (MemoryError(), "error: there is not enough memory"),
        (OSError("gone"), "error: what was to be read or written: gone"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    monkeypatch.setattr(load, "open_guard", failing(error))
    result = run("generate", "org/m", "x")
    assert result.exit_code == 2 and result.stderr.startswith(says) and result.stderr.count("\n") == 1
    assert run("--debug", "generate", "org/m", "x").exception is error


def test_a_bug_of_ours_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ZeroDivisionError()
    monkeypatch.setattr(load, "open_guard", failing(error))
    assert run("generate", "org/m", "x").exception is error


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["demo", "--help"], ["generate", "m", "x", "--interval", "0"]]
)
def test_imports_no_model_library_before_it_must(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom anydepth.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'vllm', 'sklearn', 'joblib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "anydepth", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("anydepth ")


def test_control_characters_of_a_model_do_not_reach_a_terminal(guard: ScriptedGuard) -> None:
    from anydepth.cli.output import printable

    assert printable("a\x1b[2Jb\tc\nd\u200dé\x9b") == "a[2Jb\tc\nd\u200dé"


def test_every_option_is_documented() -> None:
    from typer.main import get_command

    from anydepth.cli import app

    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
    group = get_command(app)
    assert hasattr(group, "commands")
    missing = [
        f"{name} {option}"
        for name, command in group.commands.items()
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and f"`{option}" not in page
    ]
    assert not missing


def test_a_group_of_options_becomes_one_option_per_field() -> None:
    seen: list[tuple[str, Loading]] = []

    @grouped
    def command(model: str, *, loading: Loading) -> None:
        seen.append((model, loading))

    names = ["model", "adapter", "dtype", "device", "revision", "template_kwarg", "ride"]
    assert list(inspect.signature(command).parameters) == names
    command(**dict(zip(names, ("m", "a", "auto", None, "main", ["x=1"], "auto"), strict=True)))
    assert seen == [("m", Loading("a", revision="main", template_kwarg=["x=1"], ride="auto"))]
    made = ModelOptions("m", "a", "auto", None, "main", template_kwargs={"x": 1}, ride="auto")
    assert seen[0][1].of("m") == made


def test_riding_checks_are_no_option_of_vllms_server(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "guard.toml"
    file.write_text('[model]\nride = "auto"\n')
    for given in (("--ride", "auto"), ("--config", str(file))):
        result = run("serve", "org/m", "--engine", "vllm", *given)
        assert result.exit_code == 2
        assert "ride auto does not apply to --engine vllm" in " ".join(result.stderr.split())
