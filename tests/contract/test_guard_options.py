"""Every option of a guard is taken by every way to make one."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anydepth import Guard, GuardConfig, KofN, LinearProbe
from anydepth.backends.transformers import load
from anydepth.config import OPTIONS
from anydepth.detectors import Cascade, Rethink
from anydepth.errors import ConfigError
from anydepth.policy import policy_record
from anydepth.schedule import Every
from anydepth.settings import GuardTable, parse_settings
from tests.server import tiny_model

OTHER: dict[str, Any] = {
    "policy": KofN(3, 4, 0.9),
    "schedule": Every(7),
    "release": "monitor",
    "on_error": "open",
    "refusal": "No.",
    "prefill": "end",
}
"""Another value than the default, for each option."""

FLAGS: dict[str, list[str]] = {
    "policy": ["--policy", "k_of_n"],
    "schedule": ["--interval", "7"],
    "release": ["--release", "monitor"],
    "on_error": ["--on-error", "open"],
    "refusal": ["--refusal", "No."],
    "prefill": ["--check-prefill", "end"],
}
TABLE: dict[str, dict[str, Any]] = {
    "policy": {"policy": policy_record(OTHER["policy"])},
    "schedule": {"interval": 7},
    **{name: {name: OTHER[name]} for name in ("release", "on_error", "refusal", "prefill")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def probe(folder: Path) -> Path:
    return folder / tiny_model.PROBE


def wanted(name: str, probe: Path) -> GuardConfig:
    own = LinearProbe.load(probe).policy
    return GuardConfig(**{"policy": own, name: OTHER[name]})


def test_the_tables_of_this_file_name_every_option() -> None:
    assert tuple(OTHER) == tuple(FLAGS) == tuple(TABLE) == OPTIONS == tuple(f.name for f in fields(GuardConfig))
    assert all(getattr(GuardConfig(), name) != value for name, value in OTHER.items())
    assert set(GuardTable().guard_options()) == set(OPTIONS)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", OPTIONS)
def test_in_python(name: str, folder: Path, probe: Path) -> None:
    backend, detector, option = load(folder), LinearProbe.load(probe), {name: OTHER[name]}
    made = [
        Guard(backend.model, backend.tokenizer, detector, **option),
        Guard.from_backend(backend, detector, **option),
        Guard.from_pretrained(folder, probe=probe, **option),
        Guard.from_backend(backend, detector).with_options(**option),
    ]
    assert [guard.config for guard in made] == [wanted(name, probe)] * 4


def test_an_option_that_does_not_exist_is_refused_by_name(folder: Path, probe: Path) -> None:
    backend, detector = load(folder), LinearProbe.load(probe)
    for make in (
        lambda **o: Guard(backend.model, backend.tokenizer, detector, **o),
        lambda **o: Guard.from_backend(backend, detector, **o),
        lambda **o: Guard.from_backend(backend, detector).with_options(**o),
    ):
        with pytest.raises(ConfigError, match="no option treshold; its options are policy, schedule"):
            make(treshold=0.5)


def test_a_wrong_value_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prefill is 'middle'"):
        Guard.from_pretrained(tmp_path / "no model at all", prefill="middle")


@pytest.mark.parametrize("name", OPTIONS)
def test_on_the_command_line(name: str, folder: Path, probe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anydepth.cli import app

    seen: list[GuardConfig] = []
    answer = Guard.stream

    def stream(self: Guard, *args: Any, **options: Any) -> Any:
        seen.append(self.config)
        return answer(self, *args, **options)

    monkeypatch.setattr(Guard, "stream", stream)
    arguments = ["generate", str(folder), "w1", "--probe", str(probe), "--max-new-tokens", "1", *FLAGS[name]]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert seen == [command_line(name, probe)]


def command_line(name: str, probe: Path) -> GuardConfig:
    """The command line names a policy by its kind, with the kind's own defaults."""
    return wanted(name, probe) if name != "policy" else GuardConfig(policy=KofN())


@pytest.mark.parametrize("name", OPTIONS)
def test_serve(name: str, folder: Path, probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anydepth.cli import app
    from anydepth.server import run

    engines: list[Any] = []
    monkeypatch.setattr(run, "serve", lambda load, settings: engines.append(load()))
    common = ["serve", str(folder), "--probe", str(probe), "--port", "0"]
    by_flag = CliRunner().invoke(app, [*common, *FLAGS[name]])
    assert by_flag.exit_code == 0, by_flag.output
    config = tmp_path / "guard.toml"
    lines = [f"{key} = {toml(value)}" for key, value in TABLE[name].items()]
    config.write_text("\n".join(["[guard]", *lines]))
    by_file = CliRunner().invoke(app, [*common, "--config", str(config)])
    assert by_file.exit_code == 0, by_file.output
    assert [engine.facts.guard for engine in engines] == [command_line(name, probe), wanted(name, probe)]


def test_a_generation_config_that_no_answer_can_be_guarded_under_is_refused_when_the_server_starts(
    probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anydepth.cli import app
    from anydepth.server import run

    place = tiny_model.build(tmp_path / "tiny")
    (place / "generation_config.json").write_text(json.dumps({"num_beams": 4, "eos_token_id": 2}))
    monkeypatch.setattr(run, "serve", lambda load, settings: load())
    result = CliRunner().invoke(app, ["serve", str(place), "--probe", str(probe), "--port", "0"])
    assert result.exit_code == 2
    assert "num_beams=4 cannot be guarded (the model's generation config asks for it)" in result.output


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize("name", OPTIONS)
async def test_what_a_request_of_the_server_is_guarded_by(
    name: str, folder: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anydepth.server.engine.engine import Job
    from anydepth.server.engine.transformers_engine import TransformersEngine

    seen: list[GuardConfig] = []
    turns = Guard.turns

    def watched(self: Guard, *args: Any, **options: Any) -> Any:
        seen.append(self.config)
        return turns(self, *args, **options)

    monkeypatch.setattr(Guard, "turns", watched)
    guard = Guard.from_pretrained(folder, probe=probe)
    engine = TransformersEngine(guard, model="tiny")
    await engine.start()
    async for _ in engine.submit(Job(guard.template.prompt("w1"), wanted(name, probe), 1)):
        pass
    await engine.stop()
    assert seen == [wanted(name, probe)]


@pytest.mark.parametrize("name", OPTIONS)
def test_in_vllm(name: str, folder: Path, probe: Path) -> None:
    from anydepth.vllm.additional_config import EngineOptions
    from anydepth.vllm.setup import Setup

    settings = parse_settings({"guard": {"probe": str(probe), **TABLE[name]}})
    setup = Setup(EngineOptions(settings), model=load(folder))  # type: ignore[arg-type] # the facts that a probe binds to
    assert setup.guard == wanted(name, probe)


@pytest.fixture
def cascade(probe: Path, tmp_path: Path) -> Path:
    """A probe that was calibrated for a cascade."""
    plain = LinearProbe.load(probe)
    record = {
        "second": {"mode": "look-ahead", "max_new_tokens": 2},
        "low": 0.1,
        "high": 0.9,
        "policy": policy_record(KofN(2, 2, 0.6)),
    }
    LinearProbe(plain.weight, plain.bias, replace(plain.card, calibration={"cascade": record})).save(tmp_path / "p")
    return tmp_path / "p"


def served(folder: Path, *given: object, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The guard of `anydepth serve`, or what it says instead."""
    from anydepth.cli import app
    from anydepth.server import run

    guards: list[Guard] = []
    opened = Guard.from_backend
    monkeypatch.setattr(Guard, "from_backend", lambda *a, **o: guards.append(opened(*a, **o)) or guards[-1])
    monkeypatch.setattr(run, "serve", lambda load, settings: load())
    result = CliRunner().invoke(app, ["serve", str(folder), "--port", "0", *map(str, given)])
    return guards[0] if result.exit_code == 0 else " ".join(result.output.split())


def test_a_cascade_takes_band_and_policy_from_its_probe(
    folder: Path, probe: Path, cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = served(folder, "--detector", "cascade", "--probe", cascade, monkeypatch=monkeypatch)
    detector = guard.detector
    assert (detector.name, detector.low, detector.high, detector.second.max_new_tokens) == ("cascade", 0.1, 0.9, 2)
    assert guard.policy == KofN(2, 2, 0.6)
    refused = served(folder, "--detector", "cascade", "--probe", probe, monkeypatch=monkeypatch)
    assert "not calibrated for a cascade; run `anydepth calibrate" in refused
    config = tmp_path / "guard.toml"
    config.write_text(f'[guard]\ndetector = "cascade"\nprobe = "{probe}"\nband = [0.2, 0.4]\n')
    guard = served(folder, "--config", config, monkeypatch=monkeypatch)
    assert (guard.detector.low, guard.detector.high) == (0.2, 0.4)
    assert guard.policy.threshold == pytest.approx(0.3)  # the middle of the band: the look-ahead decides in it


def test_a_cascade_on_the_command_line(folder: Path, probe: Path, cascade: Path) -> None:
    from anydepth.cli import app

    common = ["generate", str(folder), "w1", "--max-new-tokens", "2", "--detector"]
    for detector, given, code, said in (
        ("cascade", cascade, 0, ""),
        ("cascade", probe, 2, "not calibrated for a cascade"),
        ("rethink", probe, 2, "goes with --detector probe or cascade, not with --detector rethink"),
    ):
        result = CliRunner().invoke(app, [*common, detector, "--probe", str(given)])
        assert (result.exit_code, said in " ".join(result.output.split())) == (code, True), result.output


def setup_of(folder: Path, **guard: Any) -> Any:
    """What vLLM's engine makes of a `[guard]`."""
    from anydepth.vllm.additional_config import EngineOptions
    from anydepth.vllm.setup import Setup

    settings = parse_settings({"guard": guard})
    return Setup(EngineOptions(settings), model=load(folder))  # type: ignore[arg-type]


def test_a_cascade_in_vllm(folder: Path, probe: Path, cascade: Path) -> None:
    setup = setup_of(folder, detector="cascade", probe=str(cascade))
    (first, none), (second, band) = setup.stages
    assert (first.name, none, second.name, band) == ("probe", None, "rethink", (0.1, 0.9))
    assert setup.guard.policy == KofN(2, 2, 0.6) and setup.detector.name == "cascade"
    assert setup.reads == first.reads and setup.weight is first.weight and not setup.openers
    whole = len(setup.answer_header_ids)
    assert len(setup.header_ids) <= whole and setup.room == max(len(setup.header_ids) + 1, whole + 2)
    own = setup_of(folder, detector="cascade", probe=str(probe), band=[0.2, 0.4])
    assert own.stages[1][1] == (0.2, 0.4) and own.guard.policy.threshold == pytest.approx(0.3)
    with pytest.raises(ConfigError, match="not calibrated for a cascade"):
        _ = setup_of(folder, detector="cascade", probe=str(probe)).guard


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nested", "'cascade' is asked by a cascade after 'rethink'"),
        ("blind", "'cascade' says neither which states it reads nor how it judges a text"),
        ("twice", "two detectors of the cascade take the probability of openers"),
    ],
)
def test_a_cascade_that_vllm_cannot_make_the_checks_of(folder: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        _ = setup_of(folder, detector=f"{__name__}:{name}").guard


def nested() -> Cascade:
    """A cascade that ends with another one."""
    return Cascade(Rethink(), Cascade(Rethink(), Rethink(), 0.2, 0.8), 0.2, 0.8)


def blind() -> Cascade:
    """A cascade that begins with another one."""
    return Cascade(Cascade(Rethink(), Rethink(), 0.2, 0.8), Rethink(), 0.2, 0.8)


def twice() -> Cascade:
    """A cascade of two detectors that look at the next token."""
    return Cascade(Rethink("score"), Rethink("score"), 0.2, 0.8)
