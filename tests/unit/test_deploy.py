"""What an operator is given: the examples are valid, the reference is whole, and commands, options and paths exist."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from anydepth.cli import app
from anydepth.server.http.gateway import OPEN_PATHS
from anydepth.server.run import LAST_WORDS
from anydepth.settings import Settings, load_settings, parse_settings, settings_schema

ROOT = Path(__file__).resolve().parents[2]
DEPLOY, DOCS = ROOT / "deploy", ROOT / "docs"
GUARD = DEPLOY / "guard.toml"
OPERATORS = {"probes", "api-keys", "metrics-key"}
"""What the operator puts into deploy/, as docs/deploy.md says."""


def toml_blocks() -> list[Any]:
    pages = [*DOCS.rglob("*.md"), *ROOT.glob("examples/**/*.md"), ROOT / "README.md"]
    found = [
        (page, block) for page in pages for block in re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.S)
    ]
    return [pytest.param(block, id=page.name) for page, block in found if is_guard_toml(tomllib.loads(block))]


def is_guard_toml(content: dict[str, Any]) -> bool:
    """Not so for models.toml and the like, whose tables are lists."""
    tables = [content[name] for name in Settings.model_fields if name in content]
    return bool(tables) and all(isinstance(table, dict) for table in tables)


def check(path: Path) -> None:
    result = CliRunner().invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 0, result.output


def test_the_example_passes_config_check():
    check(GUARD)


@pytest.mark.parametrize("block", toml_blocks())
def test_every_guard_toml_in_the_docs_passes_config_check(block, tmp_path):
    (tmp_path / "guard.toml").write_text(block, "utf-8")
    check(tmp_path / "guard.toml")


def reference() -> dict[str, dict[str, str]]:
    """Table -> key -> what docs/guard-toml.md says is its default."""
    tables: dict[str, dict[str, str]] = {}
    for section in re.split(r"^## ", (DOCS / "guard-toml.md").read_text("utf-8"), flags=re.M)[1:]:
        name = re.match(r"\[(\w+)\]", section)
        assert name, section[:40]
        rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
        with_default = "| key | default |" in section
        keys = tables.setdefault(name[1], {})
        for cells in rows:
            names = re.findall(r"`(\w+)`", cells[0])
            defaults = [cell.strip("` ") for cell in cells[1].split(", ")] if with_default else []
            keys |= dict(zip(names, defaults if len(defaults) == len(names) else [""] * len(names), strict=True))
    return tables


def test_the_reference_names_every_key_and_no_other():
    schema = settings_schema()
    tables = {
        name: set(schema["$defs"][table["$ref"].rpartition("/")[2]]["properties"])
        for name, table in schema["properties"].items()
    }
    assert {name: set(keys) for name, keys in reference().items()} == tables


def test_the_reference_has_the_defaults():
    defaults = parse_settings({}).model_dump(mode="json")
    for table, keys in reference().items():
        for key, said in keys.items():
            value = defaults[table][key]
            literal = re.fullmatch(r'true|false|[\d.]+|".*"', said)
            assert not literal or json.loads(said) == value, f"[{table}] {key}"
            assert literal or value is None or said == "", f"[{table}] {key} is {value!r} by default, not {said}"


def options(command: str) -> set[str]:
    group = typer.main.get_command(app)
    return {name for option in group.commands[command].params for name in option.opts}  # pyright: ignore


def assert_command_exists(words: list[str]) -> None:
    """`words` is a call of anydepth: the command exists, and takes the options."""
    program, command, *rest = words
    assert Path(program).name == "anydepth"
    if command == "config":
        assert rest[0] in ("check", "schema")
        return
    flags = {word for word in rest if word.startswith("-")}
    assert flags <= options(command), f"{flags - options(command)} of {command}"


def docker_lines() -> list[list[str]]:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.M)
    return [line.split(maxsplit=1) for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]


def docker(instruction: str) -> list[str]:
    return [line[1] for line in docker_lines() if line[0] == instruction]


def test_the_image_runs_a_command_that_exists():
    assert_command_exists(json.loads(docker("ENTRYPOINT")[-1]) + json.loads(docker("CMD")[-1]))
    assert docker("EXPOSE") == ["8000"]


def test_what_the_image_copies_exists_and_is_not_ignored():
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").split()
    assert ignore[0] == "*"
    sources = [word for line in docker("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert sources
    for source in sources:
        path = source.removeprefix("./")
        assert (ROOT / path).exists() and f"!{path}" in ignore, source
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == {
        s.removeprefix("./") for s in sources
    }
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.M)  # the Dockerfile greps for it


def test_the_image_installs_extras_that_exist():
    (wanted,) = re.findall(r"\.\[([\w,]+)\]", (DEPLOY / "Dockerfile").read_text("utf-8"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert {"transformers", "server"} <= set(wanted.split(",")) <= set(extras)


def test_the_image_is_not_root_and_is_asked_for_its_health():
    assert docker("USER")[-1].split(":")[0] not in ("", "0", "root")
    assert [line[0] for line in docker_lines()].index("USER") < [line[0] for line in docker_lines()].index("ENTRYPOINT")
    assert re.search(r"http://127\.0\.0\.1:8000(/\w+)", docker("HEALTHCHECK")[-1])[1] in OPEN_PATHS  # pyright: ignore


def compose(name: str) -> dict[str, Any]:
    text = (DEPLOY / name).read_text("utf-8")
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))


def seconds(span: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(s|min|m)", span).groups()  # pyright: ignore
    return int(number) * (1 if unit == "s" else 60)


def test_compose_runs_a_command_that_exists():
    command = compose("compose.gpu.yaml")["services"]["anydepth"]["command"]
    assert_command_exists(json.loads(docker("ENTRYPOINT")[-1]) + command)
    build = compose("compose.yaml")["services"]["anydepth"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    arguments = {line.partition("=")[0] for line in docker("ARG")}
    gpu = compose("compose.gpu.yaml")["services"]["anydepth"]["build"]
    assert set(build["args"]) | set(gpu["args"]) <= arguments


def test_what_compose_mounts_exists_or_is_the_operators_as_the_docs_say():
    whole, said = compose("compose.yaml"), (DOCS / "deploy.md").read_text("utf-8")
    binds = [v for s in whole["services"].values() for v in s["volumes"] if v["type"] == "bind"]
    assert all(bind["read_only"] and not bind["bind"]["create_host_path"] for bind in binds)
    sources = [bind["source"] for bind in binds] + [secret["file"] for secret in whole["secrets"].values()]
    for source in sources:
        assert (DEPLOY / source).exists() or Path(source).name in OPERATORS, source
    assert all(name in said for name in OPERATORS)
    volumes = {v["source"] for s in whole["services"].values() for v in s["volumes"] if v["type"] == "volume"}
    assert volumes == set(whole["volumes"])


def test_the_containers_have_limits_and_few_rights():
    for name, service in compose("compose.yaml")["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name
        assert service["security_opt"] == ["no-new-privileges:true"] and "healthcheck" in service, name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
    assert compose("compose.yaml")["services"]["anydepth"]["user"] == docker("USER")[-1]


def test_paths_of_guard_toml_are_those_that_are_mounted():
    settings, service = load_settings(GUARD), compose("compose.yaml")["services"]["anydepth"]
    targets = [mount["target"] for mount in service["volumes"] + service["secrets"]]
    inside = [settings.guard.probe, settings.http.api_key_file]
    for path in [str(Path("/etc/anydepth") / Path(p).relative_to(DEPLOY)) for p in inside if p] + [settings.audit.path]:
        assert any(Path(path).is_relative_to(target) for target in targets), path
    config = json.loads(docker("CMD")[-1])[1]
    assert config in targets and set(json.loads(docker("VOLUME")[-1])) <= set(targets)


def test_prometheus_asks_for_the_metrics_with_the_key():
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    services = compose("compose.yaml")["services"]
    assert job["authorization"]["credentials_file"] == services["prometheus"]["secrets"][0]["target"]
    assert job["static_configs"][0]["targets"] == ["anydepth:8000"] and "anydepth" in services
    assert services["prometheus"]["profiles"] == ["metrics"]


def unit() -> dict[str, dict[str, list[str]]]:
    class Many(dict):  # a key of a unit may be given several times
        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, self.get(key, []) + value if isinstance(value, list) else value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Many, comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    parser.read(DEPLOY / "anydepth.service")
    return {name: {key: value.splitlines() for key, value in parser[name].items()} for name in parser.sections()}


def test_the_unit_runs_commands_that_exist():
    service = unit()["Service"]
    for key in ("ExecStartPre", "ExecStart"):
        assert_command_exists(shlex.split(service[key][0]))


def test_every_stop_leaves_the_time_of_grace():
    grace = load_settings(GUARD).limits.grace_seconds
    assert parse_settings({}).limits.grace_seconds <= grace
    service = unit()["Service"]
    assert seconds(service["TimeoutStopSec"][0]) >= grace + LAST_WORDS + 5
    assert seconds(compose("compose.yaml")["services"]["anydepth"]["stop_grace_period"]) >= grace + LAST_WORDS + 5
    assert service["Restart"] == ["on-failure"] and service["RestartPreventExitStatus"] == ["2"]
    assert service["EnvironmentFile"][0].startswith("-")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path):
    """Verified with a program that exists here: systemd looks for it."""
    text = (DEPLOY / "anydepth.service").read_text("utf-8").replace("/opt/anydepth/bin/anydepth", sys.executable)
    (tmp_path / "anydepth.service").write_text(text, "utf-8")
    for command in (["verify"], ["security", "--offline=true", "--threshold=20"]):  # in tenths
        done = subprocess.run(
            ["systemd-analyze", *command, tmp_path / "anydepth.service"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and "nknown" not in done.stderr, done.stdout + done.stderr


def test_hadolint_takes_the_dockerfile():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed; pip install 'anydepth[check]'")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_guardrail_example_names_options_that_it_has():
    """`config.yaml` of the LiteLLM example; that it works is shown by tests/server/test_litellm.py."""
    folder = ROOT / "examples" / "litellm"
    params = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))["guardrails"][0]["litellm_params"]
    module, name = params["guardrail"].split(".")
    source = (folder / f"{module}.py").read_text("utf-8")
    assert f"class {name}(CustomGuardrail)" in source
    assert all(f"{key}:" in source for key in set(params) - {"guardrail", "mode", "default_on"})
