"""Other detectors, other ways to read, other processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from anydepth import LinearProbe, Rethink
from anydepth.backends.protocol import CONTENT, FinishedAnswer, Read, Site, require_sessions
from anydepth.errors import CapabilityError, ConfigError, UnsupportedModel
from anydepth.templates.template import Prompt
from anydepth.vllm import launch
from anydepth.vllm.vllm_backend import VllmBackend
from anydepth.vllm.worker import readout
from anydepth.vllm.worker.header_rows import HeaderRows
from anydepth.vllm.worker.readout import find_module
from tests.vllm.engine import DEFAULTS, monitor
from tests.vllm.model import PROMPTS, planted_probe
from tests.vllm.own_detector import Norms

OFF = {"guard": False}
QUESTIONS = [[{"role": "user", "content": text}] for text in ("Name a colour.", "Why is the sky blue?", "Say hello.")]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def plain_probe(reference, tmp_path_factory):
    """A probe of sites that every way can read, means among its reads."""
    path = tmp_path_factory.mktemp("plain") / "probe.safetensors"
    reads = ("2.input_layernorm@2", "3.output@3", "3.output@content", "3.output@mean6", "1.input_layernorm@mean")
    return planted_probe(path, reference, reads)


@pytest.mark.parametrize(
    ("read_out", "eager", "name"),
    [
        ("auto", True, "forward hooks"),
        ("aux", True, "auxiliary hidden states"),
        pytest.param("auto", False, "auxiliary hidden states", marks=pytest.mark.slow),
    ],
)
def test_all_ways_read_what_transformers_reads(engines, reference, plain_probe, read_out, eager, name):
    settings = {"guard": {"probe": str(plain_probe)}}
    engine = engines(settings=settings, extra={"read_out": read_out}, enforce_eager=eager)
    (stats,) = engine.llm.collective_rpc("anydepth_stats")
    assert stats["read_out"] == name
    probe = LinearProbe.load(plain_probe)
    told = engine.answers(PROMPTS[:8], guard=monitor(interval=6), max_tokens=20, ignore_eos=True)
    plain = engine.answers(PROMPTS[:8], guard=OFF, max_tokens=20, ignore_eos=True)
    assert [each.token_ids for each in told] == [each.token_ids for each in plain]
    for answer, messages in zip(told, PROMPTS, strict=False):
        checks = {each["depth"]: each["score"] for each in answer.report["timeline"]}
        wanted = reference.scores(probe, engine.ids(messages), answer.token_ids, list(checks))
        assert checks == pytest.approx(wanted, abs=1e-3)


def test_the_header_goes_no_further_than_the_last_site(engines, reference, tmp_path, monkeypatch):
    probe = planted_probe(
        tmp_path / "probe.safetensors", reference, ("1.input_layernorm@content", "2.input_layernorm@1")
    )
    engine = engines(settings={"guard": {"probe": str(probe)}})
    (stats,) = engine.llm.collective_rpc("anydepth_stats")
    assert stats["header_ends_at"] == 2
    cut, spread = [], HeaderRows._spread

    def spreading(self, kept):
        cut.append(self._rows - len(kept))
        return spread(self, kept)

    monkeypatch.setattr(HeaderRows, "_spread", spreading)
    plain = engine.answers(PROMPTS[:6], guard=OFF, max_tokens=30, ignore_eos=True)
    assert not cut
    told = engine.answers(PROMPTS[:6], guard=monitor(interval=7), max_tokens=30, ignore_eos=True)
    header = len(engine.scheduler.setup.header_ids)
    assert len(cut) % 8 == 0 and min(cut) >= header and all(rows % header == 0 for rows in cut)
    assert [each.token_ids for each in told] == [each.token_ids for each in plain]
    for answer, messages in zip(told, PROMPTS, strict=False):
        checks = {each["depth"]: each["score"] for each in answer.report["timeline"]}
        assert set(checks) >= {0, 7, 14, 21, 28}
        wanted = reference.scores(LinearProbe.load(probe), engine.ids(messages), answer.token_ids, list(checks))
        assert checks == pytest.approx(wanted, abs=1e-3)


def test_a_site_that_compiled_graphs_do_not_offer_is_refused(engines):
    with pytest.raises(Exception, match="compiled graphs"):
        engines(extra={"read_out": "aux"})


def test_each_scheduler_refuses_the_configuration_of_the_other(engines, tiny_folder, monkeypatch):
    """An engine that collects states guards nothing, so that one must never be started for the other."""
    monkeypatch.setattr(launch, "SCHEDULER", launch.COLLECTOR)
    with pytest.raises(ConfigError, match="StateScheduler, and additional_config guards answers"):
        engines(max_model_len=64)
    monkeypatch.undo()
    monkeypatch.setattr(launch, "COLLECTOR", launch.SCHEDULER)
    with pytest.raises(ConfigError, match="GuardedScheduler, and additional_config collects states"):
        VllmBackend(tiny_folder, sites=[Site(2)], **DEFAULTS)


@pytest.mark.model
@pytest.mark.parametrize("mode", ["rethink", "rethink-score"])
def test_rethink_asks_on_the_prefix_cache(engines, demo_model_dir, mode):
    engine = engines(folder=demo_model_dir, settings={"guard": {"detector": mode}}, max_num_seqs=4, max_logprobs=-1)
    plain = engine.answers(QUESTIONS, guard=OFF, max_tokens=24, ignore_eos=True)
    told = engine.answers(QUESTIONS, guard=monitor(interval=8), max_tokens=24, ignore_eos=True)
    assert [each.token_ids for each in told] == [each.token_ids for each in plain]
    setup = engine.scheduler.setup
    header = setup.header_ids
    for answer, messages in zip(told, QUESTIONS, strict=True):
        checks = {each["depth"]: each["score"] for each in answer.report["timeline"]}
        assert list(checks) == [0, 1, 2, 4, 8, 16, 24] and answer.report["failed_checks"] == 0
        ids = engine.ids(messages)
        for depth, score in checks.items():
            text = ids + answer.token_ids[:depth] + (list(header) if depth else [])
            assert score == pytest.approx(asked(engine, setup.detector, text), abs=1e-3)
    engine.verified()
    assert not engine.scheduler.requests


def asked(engine, detector: Rethink, ids: list[int]) -> float:
    """What an unguarded request with the header behind the text says."""
    if detector.mode == "look-ahead":
        ends = list(engine.scheduler.setup.model.end_token_ids)
        answer = engine.answer(ids, guard=OFF, max_tokens=detector.max_new_tokens, stop_token_ids=ends)
        return float(detector.matcher.is_refusal(engine.scheduler.setup.model.decode_text(answer.token_ids)))
    answer = engine.answer(ids, guard=OFF, max_tokens=1, logprobs=-1)
    return sum(np.exp(answer.logprobs[0][token].logprob) for token in detector.opener_ids)


def test_rethink_checks_a_prefill_first(engines):
    engine = engines(settings={"guard": {"detector": "rethink"}}, max_num_seqs=1)
    ids = [*engine.ids(PROMPTS[0]), 30, 31, 32]
    answer = engine.answer(ids, guard=monitor(interval=8), max_tokens=5, ignore_eos=True)
    assert [each["depth"] for each in answer.report["timeline"]] == [0, 3, 4, 5, 7, 8]
    assert answer.token_ids == engine.answer(ids, guard=OFF, max_tokens=5, ignore_eos=True).token_ids


@pytest.mark.model
def test_a_real_model_with_its_shipped_probe(engines, demo_model_dir):
    """The shipped probe is found by the checkpoint's fingerprint; structured output goes on under guard."""
    from vllm.sampling_params import StructuredOutputsParams

    engine = engines(folder=demo_model_dir, settings={"guard": {}})
    told = engine.answers(QUESTIONS, guard=monitor(interval=5), max_tokens=30)
    plain = engine.answers(QUESTIONS, guard=OFF, max_tokens=30)
    assert [each.token_ids for each in told] == [each.token_ids for each in plain]
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "dark green"]}}, "required": ["colour"],
              "additionalProperties": False}  # fmt: skip
    for params in (StructuredOutputsParams(json=schema), StructuredOutputsParams(choice=["a red one", "a blue one"])):
        sampling = {"structured_outputs": params, "max_tokens": 40}
        plain = engine.answers(QUESTIONS, guard=OFF, **sampling)
        told = engine.answers(QUESTIONS, guard=monitor(interval=3), **sampling)
        assert [each.text for each in told] == [each.text for each in plain]
        assert [each.finish_reason for each in told] == [each.finish_reason for each in plain] == ["stop"] * 3
    engine.verified()


@pytest.fixture(scope="module")
def backend(tiny_folder):
    sites = [Site(2), Site(1, "output")]
    made = VllmBackend(tiny_folder, sites=sites, **DEFAULTS)
    yield made
    del made


def test_the_backend_reads_finished_answers(backend, reference):
    rng = np.random.default_rng(5)
    answers = [
        FinishedAnswer(Prompt(tuple(reference.template.prompt(each).ids)), tuple(map(int, rng.integers(9, 250, 50))),
                       (0, 1, 7, 25, 50)) for each in PROMPTS[:5]
    ]  # fmt: skip
    found = backend.read_batch(answers, [Site(2), Site(1, "output")], tokens=[CONTENT, 0, 2])
    for answer, states in zip(answers, found, strict=True):
        for index, depth in enumerate(answer.depths):
            for place, token in enumerate((CONTENT, 0, 2)):
                for site, values in states.items():
                    ids = (*answer.prompt.ids, *answer.answer_ids[:depth])
                    (wanted,) = reference.states(ids, depth, [Read(site, token)])
                    np.testing.assert_allclose(values[index, place], wanted, atol=1e-3, rtol=1e-3)
    control = backend.read_batch(answers[:1], [Site(2)], tokens=[1], suffix=[50, 60])
    assert control[0][Site(2)].shape == (5, 1, 64) and np.isfinite(control[0][Site(2)]).all()
    assert not list(Path(backend._folder.name).iterdir())


def test_a_module_that_is_never_called_ends_the_start(engines, tmp_path, reference, monkeypatch):
    def found(model, layers, site):
        return torch.nn.Identity() if site.module == "mlp" else find_module(model, layers, site)

    file = planted_probe(tmp_path / "probe.safetensors", reference, ("2.input_layernorm@2", "1.mlp@mean"))
    monkeypatch.setattr(readout, "find_module", found)
    with pytest.raises(UnsupportedModel, match=r"site 1\.mlp cannot be read: vLLM does not call this module"):
        engines(settings={"guard": {"probe": str(file)}}, enforce_eager=True)


def test_the_backend_says_what_it_cannot_do(backend):
    answer = FinishedAnswer(Prompt((5, 6, 7)), (8,), (0,))
    with pytest.raises(UnsupportedModel, match=r"started for 2\.input_layernorm"):
        backend.read_batch([answer], [Site(0)], tokens=[0])
    with pytest.raises(CapabilityError, match="finished answers"):
        require_sessions(backend)


@pytest.mark.parametrize("command", ["scan", "collect"])
def test_the_command_line_reads_with_vllm_what_it_reads_with_transformers(tiny_folder, plain_probe, tmp_path, command):
    """Several answers of different lengths, one of which does not fit, in one batch."""
    rows = [
        {"id": f"r{n}", "prompt": f"w{n} w{n + 1}", "response": " ".join(f"w{20 + n + i}" for i in range(8 * n + 1)),
         "label": "benign", "licence": "MIT"} for n in range(6)
    ]  # fmt: skip
    rows.insert(3, {**rows[0], "id": "long", "response": "w9 " * 600})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"transformers": ["--dtype", "float32"], "vllm": ["--dtype", "float32", "--engine", "vllm"]}
    for name in ("enforce_eager=true", "max_model_len=512", "max_num_seqs=8", "block_size=32"):
        flags["vllm"] += ["--engine-arg", name]
    found = {}
    for engine, more in flags.items():
        out = tmp_path / engine
        if command == "scan":
            arguments = [str(tmp_path / "in.jsonl"), "--probe", str(plain_probe)]
        else:
            sites = ["--sites", "2.input_layernorm,3.output,1.mlp", "--tokens=-1,0,2,mean4,mean"]
            arguments = ["--data", str(tmp_path / "in.jsonl"), *sites, "--interval", "5"]
        command_line = [sys.executable, "-m", "anydepth", command, str(tiny_folder), *arguments, "-o", str(out), *more]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src"}
        done = subprocess.run(command_line, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == (1 if command == "scan" else 0), done.stderr[-3000:]
        assert "long" in done.stderr
        found[engine] = (_scores if command == "scan" else _states)(out)
    assert found["vllm"].keys() == found["transformers"].keys() and len(found["vllm"]) > 12
    for key, wanted in found["transformers"].items():
        np.testing.assert_allclose(found["vllm"][key], wanted, atol=1e-3, rtol=1e-3)


def _scores(path: Path) -> dict:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {(each["id"], check["depth"]): check["score"] for each in records for check in each["checks"]}


def _states(path: Path) -> dict:
    from anydepth.probes.states.store import StateStore

    store = StateStore(path)
    checks = store.read([(site, token) for site in store.manifest.sites for token in store.manifest.tokens])
    return {(key, depth): state for key, depth, state in zip(checks["id"], checks["depth"], checks.states, strict=True)}


@pytest.mark.slow
def test_an_engine_in_processes_of_its_own(tiny_folder, plain_probe, tmp_path):
    """The plugin, by its environment variable alone, with vLLM's engine in another process."""
    guard = tmp_path / "guard.toml"
    guard.write_text(
        f'[guard]\nprobe = "{plain_probe}"\ninterval = 4\n[overrides]\nchecks = true\n[overrides.threshold]\nmin = 0\n'
        'max = 1\n[audit]\nkind = "jsonl"\npath = "audit.jsonl"\n'
    )
    environment = {
        **os.environ, "ANYDEPTH_GUARD": str(guard), "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_PLUGINS": "",
        "PYTHONPATH": f"{ROOT}/src:{ROOT}",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.other_process", str(tiny_folder)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert told["tokens"] == 10 and told["halted"].startswith("anydepth:{")
    assert [each["depth"] for each in told["report"]["timeline"]] == [0, 1, 2, 4, 8, 10]
    from anydepth.audit.verify import verify_audit

    report = verify_audit(tmp_path / "audit.jsonl")
    assert report.ok and report.answers["finished"] == 2 and report.blocked == 1


def test_a_detector_of_ones_own_rides(engines, reference):
    """It is not linear: the worker brings the states themselves, and the scheduler scores them."""
    own = Norms()
    table = {"detector": "tests.vllm.own_detector:Norms", "policy": {"name": "threshold", "threshold": 1.0}}
    engine = engines(settings={"guard": table})
    assert engine.scheduler.setup.detector.name == "norms" and engine.scheduler.setup.weight is None
    names = [engine.add(each, guard=monitor(interval=7)) for each in PROMPTS[:4]]
    told = engine.run()
    for name, messages in zip(names, PROMPTS, strict=False):
        answer = told[name]
        length = len(answer.token_ids) - int(answer.finish_reason == "stop")
        checks = {each["depth"]: each["score"] for each in answer.report["timeline"]}
        wanted = reference.scores(own, engine.ids(messages), answer.token_ids[:length], list(checks))
        assert len(checks) > 3 and checks == pytest.approx(wanted, abs=1e-4)
    engine.verified()
