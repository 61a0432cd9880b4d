"""`anydepth probe`: show, push with the hub faked, import."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors

from anydepth.backends.protocol import CheckPoint, ModelIdentity, Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.cli import load
from anydepth.cli import probe as command
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.policy import KofN
from anydepth.probes.artefact.modelcard import write_folder
from anydepth.probes.fitting.calibrate import Trail, calibrate, recalibrated
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.cli.conftest import Run

joblib = pytest.importorskip("joblib")
linear_model = pytest.importorskip("sklearn.linear_model")


def made() -> LinearProbe:
    card = ProbeCard(
        model=ModelIdentity("org/tiny", "abc123", "llama", 4, 6, "f00d"),
        header_ids=(7, 8, 9),
        reads=(Read(Site(3), 1),),
        sources=({"name": "some-set", "licence": "MIT"},),
        created="2026-11-22",
        notes="A \x1b[31mnote\x1b[0m.",
    )
    benign = [Trail(str(n), "traffic", (0, 25), (0.0, n / 100)) for n in range(50)]
    found = calibrate(KofN(1, 2), benign, target=0.1, data="May traffic")
    return recalibrated(LinearProbe(np.arange(4.0), 0.5, card), found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "probe", made(), {}, [], "anydepth fit X")


# -- show --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["probe", "probe/probe.safetensors"])
def test_show_tells_what_the_card_says(run: Run, folder: Path, name: str) -> None:
    result = run("probe", "show", folder.parent / name)
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    for fact in (
        "org/tiny, revision abc123",
        "f00d",
        "3.input_layernorm@1",
        "k_of_n, k 1, n 2, threshold 0.44",
        "10 % (5 of 50 benign answers)",
        "May traffic",
        "some-set (MIT)",
        "1-25 50 5 50 5",
    ):
        assert fact in text
    assert "\x1b" not in result.stdout  # a card from elsewhere cannot steer the terminal


def test_show_json_is_the_card(run: Run, folder: Path) -> None:
    record = json.loads(run("probe", "show", folder, "--json").stdout)
    assert record["reads"] == ["3.input_layernorm@1"]
    assert record["calibration"]["answers"] == 50
    assert record["probe"] == str(folder / "probe.safetensors")


def test_show_a_shipped_probe_by_the_name_of_its_model(run: Run) -> None:
    _, shipped = next(iter(command.shipped_probes()))
    result = run("probe", "show", shipped.card.model.name, "--json")
    assert json.loads(result.stdout)["model"]["fingerprint"] == shipped.card.model.fingerprint


def test_show_a_shipped_probe_of_a_copy_of_its_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(load, "open_backend", lambda model: SimpleNamespace(name=model.model))
    monkeypatch.setattr(command, "find_shipped", lambda backend: made() if backend.name == str(tmp_path) else None)
    assert "shipped for org/tiny" in run("probe", "show", tmp_path).stdout


def test_show_what_is_no_probe(run: Run, tmp_path: Path) -> None:
    result = run("probe", "show", "org/unknown")
    assert result.exit_code == 2
    assert "'org/unknown' is neither" in result.stderr
    (tmp_path / "x.safetensors").write_text("no")
    result = run("probe", "show", tmp_path / "x.safetensors")
    assert (result.exit_code, "not a probe artefact" in result.stderr) == (2, True)


@pytest.mark.parametrize("changes", [{"achieved": "x"}, {"interval": 3}, {"per_source": [1]}, {"per_depth": [{}]}])
def test_show_names_a_calibration_that_makes_no_sense(run: Run, tmp_path: Path, changes: dict[str, Any]) -> None:
    probe = made()
    card = replace(probe.card, calibration={**probe.card.calibration, **changes})
    LinearProbe(probe.weight, probe.bias, card).save(tmp_path / "p.safetensors")
    result = run("probe", "show", tmp_path / "p.safetensors")
    assert result.exit_code == 2 and not result.stdout
    assert "p.safetensors: the calibration in the card is not as `anydepth calibrate` writes it" in result.stderr
    assert run("probe", "show", tmp_path / "p.safetensors", "--json").exit_code == 0


# -- push --------------------------------------------------------------------------------------------------------------


class FakeHub:
    """What `HfApi` is asked; raises `error` if there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self) -> "FakeHub":
        return self

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.asked.append(("create", {"repo_id": repo_id, **options}))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.asked.append(("upload", options))


def test_push_uploads_the_two_files(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    result = run("probe", "push", folder, "org/my-probe", "--private", "--message", "First")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == "https://hub.example/org/my-probe"
    (_, create), (_, upload) = hub.asked
    assert create == {"repo_id": "org/my-probe", "repo_type": "model", "private": True, "exist_ok": True}
    assert upload["folder_path"] == folder
    assert upload["allow_patterns"] == ["probe.safetensors", "README.md"]
    assert (upload["repo_id"], upload["commit_message"]) == ("org/my-probe", "First")


def answered(status: int) -> Exception:
    request = SimpleNamespace(method="POST", url="https://hub.example")
    response: Any = SimpleNamespace(status_code=status, headers={}, request=request)
    return errors.HfHubHTTPError(f"Client error '{status}'\nand more", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (answered(401), "the hub answered 401; log in with `hf auth login` or set HF_TOKEN"),
        (answered(403), "may write to org"),
        (answered(500), "Client error '500' and more; try again later"),
        (errors.LocalTokenNotFoundError("no token"), "there is no token; log in"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (errors.HFValidationError("Repo id must be ..."), "'org/my-probe' is no name on the hub"),
        (ConnectionError("no route to host\nand more"), "no route to host and more; look at the network"),
        (getattr(errors, "HTTPError", OSError)("connect failed"), "connect failed; look at the network"),
        (RuntimeError("the client was closed"), "the client was closed; look at the network"),
    ],
)
def test_push_says_in_one_line_what_went_wrong(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub(error))
    result = run("probe", "push", folder, "org/my-probe")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_push_refuses_a_readme_of_another_probe(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    probe = LinearProbe.load(folder)
    LinearProbe(-probe.weight, probe.bias, probe.card).save(folder / "probe.safetensors")
    result = run("probe", "push", folder, "org/p")
    assert result.exit_code == 2 and "was written for another probe" in " ".join(result.stderr.split())
    assert not hub.asked
    (folder / "README.md").write_text("My own words.")
    result = run("probe", "push", folder, "org/p")
    assert result.exit_code == 0 and "does not say which probe" in " ".join(result.stderr.split())


def test_push_refuses_what_is_not_whole(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    (folder / "probe.safetensors").write_bytes(b"broken")
    assert "not a probe artefact" in run("probe", "push", folder, "org/p").stderr
    (folder / "README.md").unlink()
    assert "has no README.md" in run("probe", "push", folder, "org/p").stderr
    assert hub.asked == []


# -- import ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    return TransformersBackend(tiny_model("Llama"), tiny_tokenizer())


@pytest.fixture
def opened(backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(load, "open_backend", lambda model: seen.append(model) or backend)
    return seen


@pytest.fixture
def published(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(60, 32))
    model = linear_model.LogisticRegression().fit(states, (states[:, 0] > 0).astype(float))
    joblib.dump(model, tmp_path / "layer_2.joblib")
    return tmp_path / "layer_2.joblib"


def test_an_imported_probe_scores_as_scikit_learn_does(
    run: Run, opened: list[Any], published: Path, backend: TransformersBackend, tmp_path: Path
) -> None:
    out = tmp_path / "new.safetensors"
    result = run(
        "probe", "import", published, "--model", "m", "--site", "2.input_layernorm", "--allow-pickle", "-o", out
    )
    assert result.exit_code == 0, result.stderr
    probe = LinearProbe.load(out)
    assert probe.card.reads == (Read(Site(2), backend.header.read_index),)
    assert probe.card.model.fingerprint == ""
    assert "layer_2.joblib" in probe.card.notes
    probe.bind(backend)
    session = backend.open([backend.template.prompt("w1 w2")], max_new_tokens=4)
    try:
        states = session.hidden_states([CheckPoint(0, 0)], probe.reads)
        (score,) = probe.check(session, [CheckPoint(0, 0)])
    finally:
        session.close()
    assert score.value == pytest.approx(joblib.load(published).predict_proba(states.reshape(1, -1))[0, 1], abs=1e-6)


def test_the_header_is_given_as_text(
    run: Run, opened: list[Any], published: Path, backend: TransformersBackend, tmp_path: Path
) -> None:
    given = ["probe", "import", published, "--model", "m", "--site", "2.output", "--allow-pickle"]
    result = run(*given, "-o", tmp_path / "a.safetensors", "--header-text", r"<|im_end|>\n<|im_start|>assistant")
    assert result.exit_code == 0, result.stderr
    card = LinearProbe.load(tmp_path / "a.safetensors").card
    assert card.header_ids == backend.header.ids[:4]
    assert card.reads == (Read(Site(2, "output"), 3),)
    assert run(*given, "-o", tmp_path / "b.safetensors", "--read-index", "2").exit_code == 0
    assert LinearProbe.load(tmp_path / "b.safetensors").card.reads[0].token == 2


def test_an_import_does_not_go_beside_the_card_of_another_probe(run: Run, folder: Path, published: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = folder / "probe.safetensors"
    result = run("probe", "import", published, "--model", "m", "--allow-pickle", "-o", out)
    assert result.exit_code == 2 and "beside it is of another probe" in " ".join(result.stderr.split())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--site", "2.output"], "say so with --allow-pickle"),
        (["--allow-pickle"], "say it with --site"),
        (["--allow-pickle", "--site", "9.output"], "9.output"),
        (["--allow-pickle", "--site", "2.output", "--read-index", "9"], "--read-index is 9"),
        (["--allow-pickle", "--site", "2.output", "--header-text", "w1 w2"], "header up to the read token"),
        (["--allow-pickle", "--site", "2.output", "--header-text", ""], "--header-text"),
        (["--allow-pickle", "--site", "2.output", "--positive", "bad"], "'bad'"),
    ],
)
def test_an_import_that_no_guard_would_take_writes_nothing(
    run: Run, opened: list[Any], published: Path, tmp_path: Path, given: list[str], message: str
) -> None:
    result = run("probe", "import", published, "--model", "m", "-o", tmp_path / "new.safetensors", *given)
    assert result.exit_code == 2, result.stdout
    assert message in result.stderr
    assert not (tmp_path / "new.safetensors").exists()


def test_paths_are_looked_at_before_the_model_is_loaded(run: Run, opened: list[Any], published: Path) -> None:
    given = ["--model", "m", "--site", "2.output", "--allow-pickle"]
    assert "no file" in run("probe", "import", "missing.joblib", *given, "-o", "x.safetensors").stderr
    assert "folder that exists" in run("probe", "import", published, *given, "-o", "missing/x.safetensors").stderr
    assert opened == []
