"""The pure parts of the guard inside vLLM, without vLLM."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from anydepth import Threshold
from anydepth.audit.trail import AuditError
from anydepth.audit.verify import verify_audit
from anydepth.backends.altered_weights import alterations
from anydepth.backends.protocol import CONTENT, WHOLE, Read, Site
from anydepth.errors import CheckError, ConfigError
from anydepth.settings import Settings, parse_settings
from anydepth.templates.template import ChatTemplate, Prompt
from anydepth.testing import ScriptedTokenizer
from anydepth.types import Score
from anydepth.vllm.additional_config import EngineOptions, engine_options
from anydepth.vllm.engine.admission import Admission
from anydepth.vllm.engine.answer_tokens import AnswerTokens
from anydepth.vllm.engine.held_output import HeldOutput
from anydepth.vllm.engine.pending_check import PendingCheck
from anydepth.vllm.engine.positions import end_places, locate, start_places
from anydepth.vllm.launch import ENVIRONMENT, fill_in, serve_arguments
from anydepth.vllm.launch import engine_options as launch_options
from anydepth.vllm.served_model import ServedModel
from anydepth.vllm.setup import Setup
from anydepth.vllm.versions import SUPPORTED, check_version
from tests import tiny

NO_TOKENS = AnswerTokens(0)


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(ScriptedTokenizer())


def test_an_unsupported_vllm_is_refused_with_the_remedy():
    for minor in SUPPORTED:
        assert check_version(f"{minor}.1+cpu") == f"{minor}.1+cpu"
    for version in ("0.11.0", "1.0.0", "0.31.2", "0.34.0"):
        with pytest.raises(ConfigError, match=r"pip install 'vllm==") as caught:
            check_version(version)
        assert version in str(caught.value)


@pytest.mark.parametrize(
    ("config", "adapter", "said"),
    [
        ({"hf_config": SimpleNamespace()}, False, []),
        (
            {"hf_config": SimpleNamespace(quantization_config={"quant_method": "awq", "bits": 4})},
            False,
            ["4-bit (awq)"],
        ),
        ({"hf_config": SimpleNamespace(), "quantization": "fp8"}, True, ["8-bit (fp8)", "adapter (of requests)"]),
    ],
)
def test_what_vllm_does_to_the_weights_is_seen(config, adapter, said):
    model = ServedModel.__new__(ServedModel)
    model._config, model.adapter = SimpleNamespace(**config), adapter
    assert list(map(str, alterations(model))) == said


def test_the_prefill_is_what_follows_the_last_generation_prompt(template):
    prompt = template.prompt("hello")
    header = template.header
    assert locate(template, prompt.ids) == prompt
    prefilled = (*prompt.ids, 65, 66)
    assert locate(template, prefilled).prefill == 2
    assert locate(template, (*prefilled, header.ids[0])).prefill == 3
    twice = (*prompt.ids, 65, *header.ids, 66)
    assert locate(template, twice).prefill == 1
    assert locate(template, (65, 66, 67)) == Prompt((65, 66, 67))


def admitted(reads, ids):
    """A request with the prompt `ids`, as it is guarded by a probe with `reads` on the tests' tiny tokenizer."""
    tokenizer = tiny.tiny_tokenizer()
    model = SimpleNamespace(template=ChatTemplate(tokenizer), tokenizer=tokenizer, end_token_ids=frozenset({2}))
    model.header = model.template.header
    setup = Setup(EngineOptions(), model=model)
    detector = SimpleNamespace(name="p", needs=frozenset(), reads=reads, policy=Threshold(0.5))
    for method in ("bind", "check", "score_each"):
        setattr(detector, method, lambda *_: None)
    setup.__dict__["detector"] = detector
    request = SimpleNamespace(
        request_id="a", prompt_token_ids=list(ids), num_prompt_tokens=len(ids), prompt_embeds=None, resumable=False,
        max_tokens=8, sampling_params=SimpleNamespace(extra_args=None),
    )  # fmt: skip
    return Admission(setup, 512, "m").admit(request)


@pytest.mark.parametrize("end", range(4))
@pytest.mark.parametrize("token", [-25, CONTENT, 0, 1, 2, 3])
def test_a_prefill_that_ends_like_the_header_is_checked_whatever_is_read(token, end):
    template = ChatTemplate(tiny.tiny_tokenizer())
    prompt, written = template.prompt("w1 w2"), template.tokenizer("w3 " * 30)["input_ids"]
    plain = admitted((Read(Site(1), token),), prompt.ids)
    assert not plain.prompt.prefill and plain.feed.begun
    guarded = admitted((Read(Site(1), token),), (*prompt.ids, *written, *template.header.ids[:end]))
    assert guarded.prompt.prefill == 30 + end and guarded.tokens.start == len(prompt.ids)
    assert guarded.inside == (1, 2, 4, 8, 16, 25) and not guarded.feed.begun


def test_where_the_reads_of_a_check_stand(template):
    reads = (Read(Site(1), 1), Read(Site(2), CONTENT), Read(Site(1), 0))
    prompt = template.prompt("hello")
    size = len(prompt.ids)
    assert start_places(template, prompt, reads) == [(size - 1, 0), (size - 3, 1), (size - 2, 2)]
    assert start_places(template, Prompt((65, 66)), reads) is None
    assert end_places(10, reads) == [(11, 0), (9, 1), (10, 2)]
    mixed = (Read(Site(1), -25), *reads, Read(Site(2), WHOLE))
    assert start_places(template, prompt, mixed) == [(size - 1, 1), (size - 3, 2), (size - 2, 3)]
    assert end_places(10, mixed) == [(11, 1), (9, 2), (10, 3)]
    assert start_places(template, Prompt((65, 66)), mixed[::4]) == end_places(10, mixed[::4]) == []


def test_a_check_collects_over_several_steps():
    setup = linear_setup()
    check = PendingCheck(0, SimpleNamespace(request_id="a"), [(9, 0), (4, 1), (8, 2)])
    assert isinstance(check.score(setup, NO_TOKENS), CheckError)
    check.take({("a", 4, 1): 1.0, ("another", 8, 2): 7.0, ("a", 5, 0): 7.0})
    assert check.unread == [(9, 0), (8, 2)] and isinstance(check.score(setup, NO_TOKENS), CheckError)
    check.take({("a", 9, 0): 1.0, ("a", 8, 2): -2.0})
    assert not check.unread and check.score(setup, NO_TOKENS).value == 0.5
    for extreme in (1e6, -1e6):
        check.values[0] = extreme
        assert check.score(setup, NO_TOKENS).value == (extreme > 0)
    check.values[0] = float("nan")
    assert isinstance(check.score(setup, NO_TOKENS), CheckError)


def linear_setup():
    """A linear detector without a bias, as the engine scores it."""
    setup = Setup(EngineOptions(), model=None)
    probe = SimpleNamespace(name="p", needs=frozenset(), weight=np.ones((3, 4), np.float32), bias=0.0)
    for method in ("bind", "check", "score_each"):
        setattr(probe, method, lambda *_: None)
    probe.reads = tuple(Read(Site(1), token) for token in range(3))
    setup.__dict__["detector"] = probe
    return setup


def test_a_detector_that_is_not_linear_is_given_its_states():
    setup = Setup(EngineOptions(), model=None)
    states = np.arange(8, dtype=np.float32).reshape(2, 4)
    seen = []

    class Own:
        name, needs = "own", frozenset()
        reads = tuple(Read(Site(1), token) for token in range(2))

        def bind(self, backend):
            """Fits any model."""

        def check(self, session, points):
            """The engine reads for it."""

        def score_each(self, found):
            seen.append(found)
            return [Score(0.25)]

    setup.__dict__["detector"] = Own()
    assert setup.weight is None
    check = PendingCheck(0, None, [(4, 0), (5, 1)], {1: states[1], 0: states[0]})
    assert check.score(setup, NO_TOKENS) == Score(0.25) and np.array_equal(seen[0], states[None])
    setup.__dict__["detector"].score_each = lambda found: 1 / 0
    assert isinstance(check.score(setup, NO_TOKENS), ZeroDivisionError)


class Logprobs(tuple):
    def __new__(cls, *columns):
        return super().__new__(cls, columns)

    def slice_request(self, index, count):
        return Logprobs(*(column[index : index + count] for column in self[:3]), None)


def output(tokens, **fields):
    names = ("new_logprobs", "events", "new_prompt_logprobs_tensors", "prompt_token_id_logprobs", "prefill_stats")
    blank = dict.fromkeys((*names, "ec_transfer_params", "trace_headers"))
    return SimpleNamespace(**{**blank, "new_token_ids": tokens, "num_nans_in_logits": 0, **fields})


def test_what_is_held_back_leaves_with_its_tokens():
    output_held = HeldOutput()
    rows = [Logprobs(np.array([[n]]), np.array([[-n / 10]]), np.array([n]), None) for n in range(4)]
    output_held.hold(output([5], new_logprobs=rows[0], prefill_stats="stats", events=["queued"]))
    for n in (1, 2, 3):
        output_held.hold(output([5 + n], new_logprobs=rows[n]))
    fields = output_held.take(3)
    assert fields["prefill_stats"] == "stats" and fields["events"] == ["queued"]
    assert fields["new_logprobs"][0].tolist() == [[0], [1], [2]]
    assert set(output_held.take(0)) == set() and output_held.take(1)["new_logprobs"][2].tolist() == [3]


def test_the_options_travel_in_additional_config(monkeypatch):
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    settings = parse_settings({"guard": {"interval": 10}, "audit": {"kind": "jsonl", "path": "/tmp/a.jsonl"}})
    ours = launch_options(settings, allow_unguarded=True)
    read = engine_options(ours["additional_config"])
    assert read.settings == settings and read.allow_unguarded and not read.collects
    assert ours["scheduler_cls"].endswith(".GuardedScheduler")
    collecting = launch_options(Settings(), collect={"sites": ["1.output"], "spool": "/tmp"})
    assert collecting["scheduler_cls"].endswith(".StateScheduler")
    arguments = serve_arguments(settings)
    assert "--additional-config" in arguments
    assert not any("async" in argument for argument in arguments)  # vLLM's own choice, or the operator's
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == ENVIRONMENT["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    launch_options(settings)
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    with pytest.raises(ConfigError, match="additional_config has no table"):
        engine_options({})
    with pytest.raises(ConfigError, match="it takes"):
        engine_options({"anydepth": {"interval": 5}})
    with pytest.raises(ConfigError, match="intervall"):
        engine_options({"anydepth": {"settings": {"guard": {"intervall": 5}}}})
    with pytest.raises(ConfigError, match=r"\[tools\] gate does not apply to the engine vllm"):
        engine_options({"anydepth": {"settings": {"tools": {"gate": True}}}})


def test_the_plugin_fills_in_what_is_asked_for_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    plain = SimpleNamespace(additional_config={}, scheduler_cls=None, worker_cls="auto", async_scheduling=None)
    assert not fill_in(plain, {}) and plain.scheduler_cls is None
    (tmp_path / "guard.toml").write_text("[guard]\ninterval = 7\n")
    assert fill_in(plain, {"ANYDEPTH_GUARD": str(tmp_path / "guard.toml")})
    assert plain.scheduler_cls.endswith("GuardedScheduler") and plain.async_scheduling is None
    assert engine_options(plain.additional_config).settings.guard.interval == 7
    table = {"anydepth": {"settings": {"guard": {"interval": 3}}}, "other": 1}
    collecting = SimpleNamespace(additional_config={"anydepth": {"collect": {"sites": ["1.output"]}}})
    assert fill_in(collecting, {}) and collecting.scheduler_cls.endswith(".StateScheduler")
    given = SimpleNamespace(additional_config=table, scheduler_cls=None, worker_cls="auto", async_scheduling=None)
    assert fill_in(given, {}) and given.worker_cls.endswith("GuardedWorker")
    assert given.additional_config["other"] == 1
    assert engine_options(given.additional_config).settings.guard.interval == 3
    with pytest.raises(ConfigError, match="no-such"):
        fill_in(plain, {"ANYDEPTH_GUARD": str(tmp_path / "no-such.toml")})


def test_a_guard_that_is_asked_for_twice_is_the_explicit_one(tmp_path):
    (tmp_path / "guard.toml").write_text("[guard]\ninterval = 7\n")
    given = SimpleNamespace(additional_config={"anydepth": {"settings": {"guard": {"interval": 3}}}})
    assert fill_in(given, {"ANYDEPTH_GUARD": str(tmp_path / "guard.toml")})
    assert engine_options(given.additional_config).settings.guard.interval == 3


def test_the_defaults_are_a_guard():
    assert engine_options({"anydepth": {}}).settings == Settings()


def test_the_pure_parts_import_no_vllm_and_no_torch():
    engine = "flow_feed guarded_request admission pending_check positions held_output answer_tokens range_sums"
    names = ["report_field", "additional_config", "launch", "versions", "served_model", "setup", "worker.readout"]
    names += [f"engine.{name}" for name in engine.split()]
    code = "import sys\n" + "\n".join(f"import anydepth.vllm.{name}" for name in names)
    code += "\nassert not {'vllm', 'torch'} & set(sys.modules), 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_engine_has_an_audit_trail_of_its_own(tmp_path):
    settings = parse_settings({"audit": {"kind": "jsonl", "path": str(tmp_path / "audit.jsonl")}})
    setup = SimpleNamespace(options=SimpleNamespace(settings=settings))
    admissions = [Admission(setup, 100, "m"), Admission(setup, 100, "m", rank=1)]
    for admission in admissions:
        admission.audit.write({"kind": "note"})
    with pytest.raises(AuditError, match="another server writes it"):
        _ = Admission(setup, 100, "m").audit
    for admission in admissions:
        admission.audit.close()
    assert {each.name for each in tmp_path.iterdir()} == {"audit.jsonl", "audit.jsonl-rank1"}
    assert verify_audit(tmp_path / "audit.jsonl").ok
