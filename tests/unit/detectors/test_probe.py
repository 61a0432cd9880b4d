"""LinearProbe: the score, the artefact and what it refuses."""

import dataclasses
import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from anydepth.backends.protocol import CONTENT, WHOLE, Capability, CheckPoint, ModelIdentity, Read, Site
from anydepth.detectors import LinearProbe, ProbeCard, find_shipped
from anydepth.detectors.card import card_from, card_record
from anydepth.detectors.detector import require_header
from anydepth.errors import CapabilityError, CheckError, ConfigError, ProbeError, ProbeMismatch
from anydepth.policy import Ewma

from .conftest import WIDTH, ScriptedBackend, ScriptedSession


def rewrite(path: Path, *, tensors: dict[str, Any] | None = None, **metadata: Any) -> None:
    """Replace parts of a saved artefact; a value of None removes its key."""
    with safetensors.safe_open(path, framework="numpy") as file:
        old = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        texts = dict(file.metadata())
    kept = {name: value for name, value in {**old, **(tensors or {})}.items() if value is not None}
    texts = {name: value for name, value in {**texts, **metadata}.items() if value is not None}
    safetensors.numpy.save_file(kept, path, texts or None)


def recard(path: Path, **changes: Any) -> None:
    with safetensors.safe_open(path, framework="numpy") as file:
        record = {**json.loads(file.metadata()["anydepth"]), **changes}
    rewrite(path, anydepth=json.dumps({name: value for name, value in record.items() if value != "REMOVED"}))


@pytest.fixture
def saved(probe: LinearProbe, tmp_path: Path) -> Path:
    path = tmp_path / "probe.safetensors"
    probe.save(path)
    return path


def test_score_is_the_logistic_function_of_the_state(probe: LinearProbe, points: list[CheckPoint]) -> None:
    states = np.random.default_rng(0).normal(size=(3, 1, WIDTH))
    session = ScriptedSession(states=states)
    scores = probe.check(session, points)
    want = 1 / (1 + np.exp(-(states[:, 0].astype(np.float32) @ probe.weight[0] + probe.bias)))
    assert [score.value for score in scores] == pytest.approx(want, rel=1e-5)
    assert session.reads == (Read(Site(3), 2),)


@pytest.mark.parametrize(("logit", "want"), [(1e4, 1.0), (-1e4, 0.0), (3e38, 1.0), (0.0, 0.5)])
def test_score_is_stable_at_extremes(card: ProbeCard, logit: float, want: float) -> None:
    probe = LinearProbe(np.eye(WIDTH)[0], 0.0, card)
    with np.errstate(all="raise", under="ignore"):
        [score] = probe.score_each(np.eye(WIDTH, dtype=np.float32)[:1, None] * np.float32(logit))
    assert not isinstance(score, Exception)
    assert score.value == want


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_state_that_is_not_finite_raises_with_its_depth(
    probe: LinearProbe, points: list[CheckPoint], bad: float
) -> None:
    states = np.zeros((3, 1, WIDTH))
    states[1, 0, 4] = bad
    with pytest.raises(CheckError, match=r"depth 25 \(row 1\)"):
        probe.check(ScriptedSession(states=states), points)
    each = probe.score_each(states)
    assert [isinstance(score, CheckError) for score in each] == [False, True, False]


def test_reads_are_summed(card: ProbeCard, points: list[CheckPoint]) -> None:
    card = dataclasses.replace(card, reads=(Read(Site(3), 2), Read(Site(1), -1)))
    rng = np.random.default_rng(3)
    weight, states = rng.normal(size=(2, WIDTH)), rng.normal(size=(3, 2, WIDTH))
    probe = LinearProbe(weight, 0.5, card)
    session = ScriptedSession(states=states)
    want = 1 / (1 + np.exp(-(np.einsum("nrw,rw->n", states, weight) + 0.5)))
    assert [score.value for score in probe.check(session, points)] == pytest.approx(want, rel=1e-5)
    assert session.reads == card.reads
    assert card.probe_ids == (7, 8, 9)


@pytest.mark.parametrize(
    ("reads", "version", "ids"),
    [
        ((Read(Site(3), 2),), "2", (7, 8, 9)),
        ((Read(Site(3), -25), Read(Site(3), 1)), "3", (7, 8)),
        ((Read(Site(3), WHOLE), Read(Site(1, "mlp"), -2)), "3", ()),
        ((Read(Site(3), CONTENT), Read(Site(3), -8)), "3", ()),
    ],
)
def test_a_probe_of_means_is_kept_in_a_layout_that_older_releases_refuse(
    tmp_path: Path, card: ProbeCard, reads: tuple[Read, ...], version: str, ids: tuple[int, ...]
) -> None:
    card = dataclasses.replace(card, reads=reads)
    weight = np.arange(len(reads) * WIDTH, dtype=np.float32).reshape(len(reads), WIDTH)
    LinearProbe(weight, 0.5, card).save(tmp_path / "p.safetensors")
    loaded = LinearProbe.load(tmp_path / "p.safetensors")
    assert loaded.reads == reads and np.array_equal(loaded.weight, weight) and loaded.card == card
    assert loaded.card.probe_ids == ids, "no header token is run for means"
    with safetensors.safe_open(tmp_path / "p.safetensors", framework="numpy") as file:
        assert file.metadata()["format_version"] == version


def test_a_probe_of_means_only_fits_a_model_with_another_header(backend: ScriptedBackend, card: ProbeCard) -> None:
    backend.header = SimpleNamespace(ids=(1, 2), read_index=0, probe_ids=(1,))
    weight = np.zeros((1, WIDTH), np.float32)
    LinearProbe(weight, 0.0, dataclasses.replace(card, reads=(Read(Site(3), -25),))).bind(backend)
    with pytest.raises(ProbeMismatch, match="header up to the read token"):
        LinearProbe(weight, 0.0, card).bind(backend)


def test_states_of_another_shape_raise(probe: LinearProbe, points: list[CheckPoint]) -> None:
    with pytest.raises(CheckError, match="shape"):
        probe.check(ScriptedSession(states=np.zeros((3, 1, WIDTH + 1))), points)
    with pytest.raises(CheckError, match="2 hidden states for 3 checks"):
        probe.check(ScriptedSession(states=np.zeros((2, 1, WIDTH))), points)


def test_no_points_ask_nothing(probe: LinearProbe) -> None:
    session = ScriptedSession()
    assert probe.check(session, []) == []
    assert session.asked == []


def test_saved_probe_loads_as_it_was(probe: LinearProbe, saved: Path) -> None:
    loaded = LinearProbe.load(saved)
    assert loaded.card == probe.card
    assert loaded.policy == Ewma(alpha=0.5, threshold=0.7)
    states = np.random.default_rng(1).normal(size=(5, 1, WIDTH))
    assert loaded.score_each(states) == probe.score_each(states)
    assert [path.name for path in saved.parent.iterdir()] == ["probe.safetensors"], "a temporary file was left"


def test_save_replaces_whole_or_not_at_all(probe: LinearProbe, saved: Path) -> None:
    before = saved.read_bytes()
    broken = LinearProbe(probe.weight, 0.0, dataclasses.replace(probe.card, calibration={"achieved": float("nan")}))
    with pytest.raises(ProbeError, match="JSON"):
        broken.save(saved)
    assert saved.read_bytes() == before
    (saved.parent / "file").write_text("")
    with pytest.raises(ProbeError, match="cannot write"):
        probe.save(saved.parent / "file" / "probe.safetensors")


def test_save_follows_a_link(probe: LinearProbe, saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    link = folder / "current.safetensors"
    link.symlink_to(saved)
    LinearProbe(2 * probe.weight, 0.0, probe.card).save(link)
    assert link.is_symlink() and [path.name for path in folder.iterdir()] == [link.name]
    assert (LinearProbe.load(saved).weight == 2 * probe.weight).all()


def test_save_makes_what_a_link_leads_to(probe: LinearProbe, tmp_path: Path) -> None:
    link = tmp_path / "current.safetensors"
    link.symlink_to("later.safetensors")
    probe.save(link)
    assert link.is_symlink() and LinearProbe.load(tmp_path / "later.safetensors").card == probe.card


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o640])
def test_save_keeps_the_mode_of_a_file(probe: LinearProbe, saved: Path, mode: int) -> None:
    saved.chmod(mode)
    LinearProbe(2 * probe.weight, 0.0, probe.card).save(saved)
    assert stat.S_IMODE(saved.stat().st_mode) == mode
    assert (LinearProbe.load(saved).weight == 2 * probe.weight).all()


@pytest.mark.parametrize("through_a_link", [False, True])
def test_save_does_not_replace_a_read_only_file(probe: LinearProbe, saved: Path, through_a_link: bool) -> None:
    before = saved.read_bytes()
    saved.chmod(0o444)
    path = saved
    if through_a_link:
        path = saved.with_name("link")
        path.symlink_to(saved)
    with pytest.raises(ProbeError, match=r"cannot write the probe .*: the file is read-only; make it writable"):
        LinearProbe(2 * probe.weight, 0.0, probe.card).save(path)
    assert saved.read_bytes() == before and stat.S_IMODE(saved.stat().st_mode) == 0o444
    assert not list(saved.parent.glob("*.tmp"))


def test_save_replaces_no_folder_and_writes_into_a_pipe(probe: LinearProbe, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="it is a folder"):
        probe.save(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "pipe").open("rb+", buffering=0) as reader:
        probe.save(tmp_path / "pipe")
        assert b"format_version" in reader.read(4096)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("name", ["x" * 300, "null\0byte"])
def test_paths_that_cannot_be_are_an_error(probe: LinearProbe, tmp_path: Path, name: str) -> None:
    with pytest.raises(ProbeError, match="cannot write the probe"):
        probe.save(tmp_path / name)
    with pytest.raises(ProbeError):
        LinearProbe.load(tmp_path / name)


def test_a_pointer_of_git_lfs_is_named(saved: Path) -> None:
    saved.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ProbeError, match="git-lfs pointer, which `git lfs pull` fetches"):
        LinearProbe.load(saved)


def test_a_tensor_of_a_kind_that_numpy_has_not_is_an_error(saved: Path) -> None:
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["weight"] = {**header["weight"], "dtype": "F8_E4M3"}
    header["weight"]["data_offsets"] = [0, WIDTH]
    header["bias"]["data_offsets"] = [WIDTH, WIDTH + 4]
    raw = json.dumps(header).encode()
    saved.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(WIDTH + 4))
    with pytest.raises(ProbeError, match="is not a probe artefact"):
        LinearProbe.load(saved)


def test_probe_without_policy(card: ProbeCard) -> None:
    assert LinearProbe(np.zeros(WIDTH), 0, dataclasses.replace(card, policy=None)).policy is None


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 20, 0.3, 0.6, 0.9, -1])
def test_truncated_file_is_an_error(saved: Path, kept: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ProbeError, match=r"probe\.safetensors"):
        LinearProbe.load(saved)


def test_files_that_are_no_probe(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="there is no probe at"):
        LinearProbe.load(tmp_path / "missing.safetensors")
    with pytest.raises(ProbeError):
        LinearProbe.load(tmp_path)
    (tmp_path / "text").write_text("hello " * 100)
    with pytest.raises(ProbeError, match="not a probe artefact"):
        LinearProbe.load(tmp_path / "text")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": {"weight": None}}, "no tensor 'weight'"),
        ({"tensors": {"bias": None}}, "no tensor 'bias'"),
        ({"tensors": {"weight": np.zeros((1, WIDTH), np.float64)}}, "float64"),
        ({"tensors": {"weight": np.zeros(WIDTH, np.float32)}}, "dimension 2"),
        ({"tensors": {"weight": np.zeros((2, WIDTH), np.float32)}}, "1 reads"),
        ({"tensors": {"weight": np.zeros((1, WIDTH + 1), np.float32)}}, "hidden size 6"),
        ({"tensors": {"bias": np.zeros(2, np.float32)}}, "bias"),
        ({"tensors": {"weight": np.full((1, WIDTH), np.nan, np.float32)}}, "not finite"),
        ({"tensors": {"bias": np.full(1, np.inf, np.float32)}}, "not finite"),
        ({"format_version": "99"}, "format version is '99'"),
        ({"format_version": None}, "format version is None"),
        ({"anydepth": None}, "no card"),
        ({"anydepth": "{not json"}, "no card"),
        ({"anydepth": "[]"}, "no card"),
        ({"anydepth": "{}"}, "no 'model'"),
        ({"anydepth": "[" * 100_000}, "no card"),
    ],
)
def test_damaged_artefact_is_an_error(saved: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(saved, **changes)
    with pytest.raises(ProbeError, match=message) as caught:
        LinearProbe.load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reads": ["3.input_layernorm@4"]}, "token 4, the header has 4"),
        ({"reads": ["3.input_layernorm"]}, "read is '3.input_layernorm'"),
        ({"reads": ["somewhere@2"]}, "site"),
        ({"reads": [2]}, "a read"),
        ({"reads": []}, "at least one state"),
        ({"reads": ["3.input_layernorm@2", "3.input_layernorm@2"]}, "none twice"),
        ({"reads": "REMOVED"}, "no 'reads'"),
        ({"header_ids": "789"}, "header_ids"),
        ({"header_ids": [7, 8, 9.5]}, "header id"),
        ({"model": {"name": "org/tiny"}}, "hidden_size"),
        ({"policy": {"name": "guess"}}, "policy is 'guess'"),
        ({"policy": [1]}, "policy"),
        ({"sources": {"name": "x"}}, "sources"),
        ({"sources": ["x"]}, "a source is 'x'"),
        ({"calibration": None}, "calibration is None"),
        ({"versions": None}, "versions is None"),
    ],
)
def test_card_that_makes_no_sense_is_an_error(saved: Path, changes: dict[str, Any], message: str) -> None:
    recard(saved, **changes)
    with pytest.raises(ProbeError, match=message):
        LinearProbe.load(saved)


def test_card_of_a_later_minor_version_is_read(saved: Path, probe: LinearProbe) -> None:
    recard(saved, colour="green")
    assert LinearProbe.load(saved).card == probe.card


def test_bind_accepts_its_own_model(probe: LinearProbe, backend: ScriptedBackend) -> None:
    probe.bind(backend)


def test_bind_accepts_another_name_of_the_same_weights(probe: LinearProbe, backend: ScriptedBackend) -> None:
    backend.identity = dataclasses.replace(backend.identity, name="/tmp/converted", revision=None)
    probe.bind(backend)


def test_bind_accepts_another_default_read_token(probe: LinearProbe, backend: ScriptedBackend) -> None:
    backend.header = SimpleNamespace(ids=(7, 8, 9, 10), read_index=3, probe_ids=(7, 8, 9, 10))
    probe.bind(backend)


MISMATCHES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "weights": ({"fingerprint": "fingerprint-2"}, "model", "fingerprint-1", "fingerprint-2"),
    "no weights known": ({"fingerprint": ""}, "model", "fingerprint-1", "unknown"),
    "width": ({"hidden_size": 8}, "hidden size", "6", "8"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_another_model_is_refused(probe: LinearProbe, backend: ScriptedBackend, case: str) -> None:
    change, what, want, got = MISMATCHES[case]
    backend.identity = dataclasses.replace(backend.identity, **change)
    with pytest.raises(ProbeMismatch) as caught:
        probe.bind(backend)
    for part in (what, want, got, "anydepth fit"):
        assert part in str(caught.value)


def test_another_template_is_refused(probe: LinearProbe, backend: ScriptedBackend) -> None:
    backend.template = SimpleNamespace(digest="digest-2")
    with pytest.raises(ProbeMismatch, match=r"chat template: .*digest-1.*digest-2.*anydepth fit"):
        probe.bind(backend)


@pytest.mark.parametrize("ids", [(7, 8, 1, 10), (7, 8), (8, 9, 10)])
def test_another_header_is_refused(probe: LinearProbe, backend: ScriptedBackend, ids: tuple[int, ...]) -> None:
    backend.header = SimpleNamespace(ids=ids, read_index=1, probe_ids=ids[:2])
    with pytest.raises(ProbeMismatch, match="header up to the read token"):
        probe.bind(backend)


def test_tokens_after_the_read_token_do_not_matter(probe: LinearProbe, backend: ScriptedBackend) -> None:
    backend.header = SimpleNamespace(ids=(7, 8, 9, 11, 12), read_index=2, probe_ids=(7, 8, 9))
    probe.bind(backend)


def test_missing_site_is_refused(probe: LinearProbe, backend: ScriptedBackend) -> None:
    backend.blocks = 3
    with pytest.raises(ProbeMismatch, match=r"site: .*3\.input_layernorm.*no block 3"):
        probe.bind(backend)


def test_missing_capability_is_refused(probe: LinearProbe, backend: ScriptedBackend) -> None:
    backend.capabilities = frozenset({Capability.LOOK_AHEAD})
    with pytest.raises(CapabilityError, match=r"'probe' needs hidden states.*ScriptedBackend"):
        probe.bind(backend)


def test_all_mismatches_are_named_at_once(probe: LinearProbe, backend: ScriptedBackend) -> None:
    backend.identity = dataclasses.replace(backend.identity, fingerprint="other")
    backend.template = SimpleNamespace(digest="digest-2")
    with pytest.raises(ProbeMismatch, match=r"model: .*chat template: "):
        probe.bind(backend)


def test_model_and_template_can_be_waived(card: ProbeCard, saved: Path, backend: ScriptedBackend) -> None:
    backend.identity = dataclasses.replace(backend.identity, fingerprint="fine-tuned")
    backend.template = SimpleNamespace(digest="digest-2")
    LinearProbe.load(saved, allow_mismatch={"model", "template"}).bind(backend)
    with pytest.raises(ProbeMismatch, match="chat template"):
        LinearProbe.load(saved, allow_mismatch={"model"}).bind(backend)


def test_width_header_and_site_cannot_be_waived(saved: Path, backend: ScriptedBackend) -> None:
    for what in ("header", "site", "hidden_size", "everything"):
        with pytest.raises(ConfigError, match="can be waived"):
            LinearProbe.load(saved, allow_mismatch={what})
    backend.identity = dataclasses.replace(backend.identity, hidden_size=8)
    with pytest.raises(ProbeMismatch, match="hidden size"):
        LinearProbe.load(saved, allow_mismatch={"model", "template"}).bind(backend)


def test_imported_probe_is_compared_by_shape(card: ProbeCard, backend: ScriptedBackend) -> None:
    unknown = dataclasses.replace(card.model, fingerprint="", name="org/published")
    probe = LinearProbe(np.zeros(WIDTH), 0, dataclasses.replace(card, model=unknown, template_digest=None))
    probe.bind(backend)
    for change in ({"num_layers": 5}, {"model_type": "gemma2"}):
        other = ScriptedBackend(dataclasses.replace(backend.identity, **change))
        with pytest.raises(ProbeMismatch, match="model: "):
            probe.bind(other)


def test_find_shipped(probe: LinearProbe, backend: ScriptedBackend, identity: ModelIdentity, tmp_path: Path) -> None:
    assert find_shipped(backend, tmp_path) is None
    assert find_shipped(backend, tmp_path / "missing") is None
    (tmp_path / "README.md").write_text("not a probe")
    other = dataclasses.replace(probe.card, model=dataclasses.replace(identity, fingerprint="other"))
    LinearProbe(probe.weight, 0, other).save(tmp_path / "a.safetensors")
    unknown = dataclasses.replace(probe.card, model=dataclasses.replace(identity, fingerprint=""))
    LinearProbe(probe.weight, 0, unknown).save(tmp_path / "b.safetensors")
    assert find_shipped(backend, tmp_path) is None
    probe.save(tmp_path / "c.safetensors")
    found = find_shipped(backend, tmp_path)
    assert found is not None
    assert found.card == probe.card


def test_find_shipped_looks_into_the_package(backend: ScriptedBackend) -> None:
    assert find_shipped(backend) is None


def test_a_transposed_weight_is_saved_in_its_own_order(probe: LinearProbe, tmp_path: Path) -> None:
    reads = tuple(Read(Site(1), token) for token in range(2))
    weight = np.arange(2 * WIDTH, dtype=np.float32).reshape(WIDTH, 2).T
    LinearProbe(weight, 0.0, dataclasses.replace(probe.card, reads=reads)).save(tmp_path / "probe.safetensors")
    assert np.array_equal(LinearProbe.load(tmp_path / "probe.safetensors").weight, weight)


# -- trained Safety Tokens ---------------------------------------------------------------------------------------------

TOKENS = np.random.default_rng(4).normal(size=(2, WIDTH)).astype(np.float32)


@pytest.fixture
def with_tokens(card: ProbeCard) -> LinearProbe:
    own = dataclasses.replace(card, safety_tokens=2, reads=(Read(Site(3), 1),))
    return LinearProbe(np.arange(WIDTH) / 10, -0.25, own, embeddings=TOKENS)


def test_trained_tokens_are_kept_so_that_older_releases_refuse_them(with_tokens: LinearProbe, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    with_tokens.save(path)
    loaded = LinearProbe.load(path)
    assert loaded.embeddings is not None and np.array_equal(loaded.embeddings, TOKENS)
    assert loaded.card == with_tokens.card and loaded.card.probe_ids == ()
    assert loaded.needs == {Capability.HIDDEN_STATES, Capability.EMBEDDINGS}
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata()["format_version"] == "4"
        assert np.array_equal(file.get_tensor("safety_tokens"), TOKENS)
    again = loaded.with_card(dataclasses.replace(loaded.card, notes="another"))
    assert again.card.notes == "another" and again.numbers == loaded.numbers
    other = LinearProbe(loaded.weight, loaded.bias, loaded.card, embeddings=TOKENS + 1)
    assert other.numbers != loaded.numbers


def test_a_probe_that_reads_the_header_has_no_tokens_of_its_own(probe: LinearProbe) -> None:
    assert probe.embeddings is None and probe.needs == {Capability.HIDDEN_STATES}
    assert probe.numbers == probe.weight.tobytes() and probe.card.format_version == "2"


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (None, "2 trained Safety Tokens of width 6, the tensor 'safety_tokens' has none"),
        (TOKENS[:1], r"has the shape \[1, 6\]"),
        (TOKENS[:, :5].copy(), r"has the shape \[2, 5\]"),
        (TOKENS[0], "not float32 of dimension 2"),
        (TOKENS.astype(np.float64), "not float32 of dimension 2"),
        (np.full_like(TOKENS, np.nan), "a trained Safety Token is not finite"),
    ],
)
def test_tokens_that_are_not_those_of_the_card_are_refused(
    with_tokens: LinearProbe, tmp_path: Path, tensor: np.ndarray | None, why: str
) -> None:
    path = tmp_path / "p.safetensors"
    with_tokens.save(path)
    rewrite(path, tensors={"safety_tokens": tensor})
    with pytest.raises(ProbeError, match=why):
        LinearProbe.load(path)


def test_tokens_that_the_card_does_not_speak_of_are_refused(saved: Path) -> None:
    rewrite(saved, tensors={"safety_tokens": TOKENS})
    with pytest.raises(ProbeError, match=r"speaks of 0 trained Safety Tokens.*has the shape \[2, 6\]"):
        LinearProbe.load(saved)


@pytest.mark.parametrize("token", [CONTENT, -25, WHOLE, 2])
def test_a_probe_with_tokens_of_its_own_reads_these_alone(card: ProbeCard, token: int) -> None:
    with pytest.raises(ProbeError, match="a probe with 2 trained Safety Tokens reads these alone, 0 to 1"):
        dataclasses.replace(card, safety_tokens=2, reads=(Read(Site(3), token),))


def test_it_belongs_to_the_weights_whatever_the_header_is(
    with_tokens: LinearProbe, card: ProbeCard, backend: ScriptedBackend
) -> None:
    backend.header = SimpleNamespace(ids=(1, 2, 3), read_index=0, probe_ids=(1,))
    with_tokens.bind(backend)
    backend.identity = dataclasses.replace(backend.identity, fingerprint="other")
    with pytest.raises(ProbeMismatch, match=r"model: .*fingerprint-1.*other"):
        with_tokens.bind(backend)
    backend.identity = card.model
    backend.capabilities = frozenset({Capability.HIDDEN_STATES})
    with pytest.raises(CapabilityError, match="needs trained Safety Tokens, which the backend ScriptedBackend"):
        with_tokens.bind(backend)


def test_what_appends_the_header_refuses_it_by_name(with_tokens: LinearProbe, probe: LinearProbe) -> None:
    require_header(probe, "a benchmark")
    with pytest.raises(CapabilityError, match=r"a benchmark appends the template's header; the probe has 2 trained"):
        require_header(with_tokens, "a benchmark")


# -- altered weights ---------------------------------------------------------------------------------------------------


def drifted(weights: str, halted: int) -> dict[str, Any]:
    side = {"answers": 20, "before": 16, "halted": halted, "difference": (halted - 16) / 20, "interval": [-0.3, 0.0]}
    return {
        "weights": weights,
        "kind": weights.partition(" (")[0],
        "sides": {"harmful": side, "benign": {**side, "before": 0, "halted": 1, "difference": 0.05}},
        "score_difference": {"mean": 0.01, "largest": 0.2},
        "verdicts_changed": {"answers": 40, "halted": 5},
    }


DRIFT = (drifted("4-bit (torchao)", 14), drifted("4-bit (quanto)", 10), drifted("8-bit (torchao)", 16))

WARNED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "measured": (
        {"quant_method": "torchao", "bits": 4},
        (
            "fitted on bfloat16, the model's weights are altered: 4-bit (torchao). Measured: of 20 harmful answers 14 "
            "were halted instead of 16 (-10 points, 95 % interval -30 to +0), of 20 harmless ones 1 instead of 0; "
            "5 of 40 verdicts changed",
        ),
    ),
    "others of the kind": (
        {"quant_method": "awq", "bits": 4},
        ("4-bit (awq)", "Not measured for these; for 4-bit (quanto): of 20 harmful answers 10", "anydepth probe drift"),
    ),
    "of the library, in a width that is not told": (
        {"quant_method": "quanto"},
        ("quantised (quanto)", "Not measured for these; for 4-bit (quanto): of 20 harmful answers 10"),
    ),
    "none of the kind": (
        {"quant_method": "hqq", "bits": 2},
        ("2-bit (hqq)", "was not measured: measure it with `anydepth probe drift`"),
    ),
}


@pytest.mark.parametrize("case", WARNED)
def test_bind_tells_the_measured_loss_on_altered_weights_once(
    card: ProbeCard, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    config, said = WARNED[case]
    probe = LinearProbe(np.ones(WIDTH), 0, dataclasses.replace(card, drift=DRIFT))
    probe.bind(backend)
    assert not caplog.records
    altered: Any = backend
    altered.quantization_config = config
    probe.bind(backend)
    probe.bind(backend)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in said:
        assert part in record.getMessage()


def test_a_probe_that_was_fitted_on_the_altered_weights_says_nothing(
    card: ProbeCard, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend.quantization_config = {"quant_method": "awq", "bits": 4}
    backend.adapter = True
    fitted = dataclasses.replace(card, dtype="bfloat16, 4-bit (awq)", adapter="lora (weights of requests)")
    LinearProbe(np.ones(WIDTH), 0, fitted).bind(backend)
    LinearProbe(np.ones(WIDTH), 0, dataclasses.replace(fitted, dtype="bfloat16, awq")).bind(backend)  # of an older card
    assert not caplog.records
    LinearProbe(np.ones(WIDTH), 0, dataclasses.replace(fitted, adapter=None)).bind(backend)
    assert "fitted on bfloat16, 4-bit (awq), the model's weights are altered: adapter (of requests)." in caplog.text


def test_a_probe_of_quantised_weights_tells_that_the_model_has_others(
    card: ProbeCard, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    LinearProbe(np.ones(WIDTH), 0, dataclasses.replace(card, dtype="bfloat16, 4-bit (awq)")).bind(backend)
    assert "fitted on bfloat16, 4-bit (awq), the model's weights are not 4-bit (awq)." in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"weights": 4},
        {"score_difference": {"mean": 0.1}},
        {"sides": {"harmful": {}}},
        {"sides": "none"},
        {"score_difference": None},
    ],
)
def test_a_drift_record_of_another_form_is_refused(card: ProbeCard, change: dict[str, Any]) -> None:
    record = json.loads(json.dumps(card_record(dataclasses.replace(card, drift=({**DRIFT[0], **change},)))))
    with pytest.raises(ProbeError, match="drift: "):
        card_from(record)
