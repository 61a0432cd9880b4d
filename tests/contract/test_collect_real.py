"""Collecting from tiny real models: true states, the same after a kill, and the same by any engine."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anydepth.backends.protocol import CONTENT, CheckPoint, Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.blocks import find_blocks
from anydepth.backends.transformers.naive import naive_scan
from anydepth.backends.transformers.read import read
from anydepth.conversations.augment import wrap
from anydepth.conversations.corpora import load
from anydepth.conversations.dataset import Conversation
from anydepth.errors import StoreError, UnsupportedModel
from anydepth.probes.recipe.own_answers import AnswerOptions, write_answers
from anydepth.probes.states.collect import SHADOW_TURN, Collected, collect
from anydepth.probes.states.manifest import manifest_for
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.sites import sites_for
from anydepth.probes.states.store import Checks, StateStore
from anydepth.schedule import Every
from anydepth.templates.template import Prompt
from tests import tiny
from tests.contract.contract import TOLERANCE, backend_of
from tests.conversations import conversation, conversations

ROOT = Path(__file__).resolve().parents[2]
PACKED = ["Llama", "Gemma-3", "Qwen2", "gpt-oss", "DeepSeek-V3 (MLA)"]
FORKED = ["Mamba-2", "Falcon-H1 (hybrid)", "Jamba (hybrid)", "Qwen3-Next (linear attention)"]


def gather(
    backend: TransformersBackend, talks: Sequence[Conversation], path: Path, plan: CollectPlan, **options: Any
) -> tuple[Collected, StateStore]:
    store = StateStore.create(path, manifest_for(backend, plan, dtype="float32"))
    return collect(backend, talks, store, plan, **options), store


def of(checks: Checks, talk: Conversation) -> Checks:
    """The checks of one conversation, by depth."""
    mine = checks.where(checks["id"] == talk.id)
    return mine.where(np.argsort(mine["depth"]))


def pass_over(backend: TransformersBackend, ids: Sequence[int], site: Site) -> np.ndarray:
    """States of all `ids` from one pass without any cache, `[tokens, hidden_size]`."""
    whole = torch.tensor([list(ids)])
    return read(backend.model, (site,), {"input_ids": whole, "use_cache": False})[site][0].numpy()


@pytest.fixture
def backend() -> TransformersBackend:
    return backend_of("Llama")


@pytest.mark.parametrize("family", PACKED)
def test_all_depths_are_those_of_advancing_a_cache_and_forking_it(family: str, tmp_path: Path) -> None:
    backend, talks = backend_of(family), conversations(9)
    sites = (Site(1, "output"), Site(2, "output"))  # the naive scan reads the input of the next block
    report, store = gather(backend, talks, tmp_path, CollectPlan(sites, schedule=Every(7)))
    assert report.by_forks is None and report.answers == 9
    checks = store.read([(site, backend.header.read_index) for site in sites])
    for talk in talks:
        mine = of(checks, talk)
        prompt = backend.template.prompt(list(talk.messages), prefill=talk.response)
        question, answer = Prompt(prompt.ids[: prompt.start]), prompt.ids[prompt.start :]
        later = mine["depth"] > 0
        depths = mine["depth"][later].tolist()
        assert depths[-1] == len(answer) == mine["length"][0]
        for place, site in enumerate(sites):
            expected = naive_scan(backend, question, answer, depths, Site(site.block + 1))
            assert np.abs(mine.states[later, place] - expected).max() < TOLERANCE
            index = backend.template.start_index(question, backend.header.read_index)
            start = pass_over(backend, question.ids, site)[index]
            assert np.abs(mine.states[~later, place] - start).max() < TOLERANCE


@pytest.mark.parametrize("family", FORKED)
def test_where_no_mask_can_rewind_the_same_states_come_by_forks(family: str, tmp_path: Path) -> None:
    backend, talks = backend_of(family), [*conversations(3, longest=20), conversation(9, response="")]
    plan = CollectPlan(sites_for(backend), schedule=Every(7))
    report, store = gather(backend, talks, tmp_path, plan)
    assert "no attention mask can rewind" in str(report.by_forks) and report.answers == 4
    tokens = (CONTENT, *range(len(backend.header.ids)))
    for site in plan.sites:
        checks = store.read([(site, token) for token in tokens])
        for talk in talks:
            mine = of(checks, talk)
            prompt = backend.template.prompt(list(talk.messages), prefill=talk.response)
            for depth, states in zip(mine["depth"].tolist(), mine.states, strict=True):
                text, begin = prompt.ids[: prompt.start + depth], prompt.start + depth
                if depth == 0:
                    begin = backend.template.start_index(Prompt(text), 0)
                expected = pass_over(backend, text if depth == 0 else (*text, *backend.header.ids), site)
                for token, state in zip(tokens, states, strict=True):
                    if begin + token < len(expected):  # the generation prompt may lack the header's end
                        assert np.abs(state - expected[begin + token]).max() < TOLERANCE, (talk.id, depth, token)


def test_the_first_replay_of_a_recurrent_model_reads_a_true_state_at_depth_0() -> None:
    backend, talk = backend_of("Mamba-2"), conversation(1)
    prompt = backend.template.prompt(list(talk.messages))
    read_token, (site, *_) = backend.header.read_index, sites_for(backend)
    session = backend.replay(prompt, (20, 21))
    found = session.hidden_states([CheckPoint(0, 0)], [Read(site, read_token)])[0, 0]
    expected = pass_over(backend, prompt.ids, site)[backend.template.start_index(prompt, read_token)]
    assert np.abs(found - expected).max() < TOLERANCE


def test_the_content_token_of_depth_0_is_the_one_before_the_generation_prompt(backend, tmp_path: Path) -> None:
    talk, site = conversation(4), Site(2)
    _, store = gather(backend, [talk], tmp_path, CollectPlan((site,)))
    prompt = backend.template.prompt(list(talk.messages))
    first = backend.template.start_index(prompt, 0)
    expected = pass_over(backend, prompt.ids, site)
    found = store.read([(site, CONTENT), (site, 0)]).states[0]
    assert np.abs(found - expected[[first - 1, first]]).max() < TOLERANCE


def test_the_shadow_view_is_the_answer_under_the_neutral_turn(backend, tmp_path: Path) -> None:
    talk, site, token = conversation(4, 30), Site(2), backend.header.read_index
    _, store = gather(backend, [talk], tmp_path, CollectPlan((site,), view="shadow"))
    shadow = store.read([(site, token)])
    assert set(shadow["view"].tolist()) == {"shadow"}
    prompt = backend.template.prompt(SHADOW_TURN, prefill=talk.response)
    for depth, state in zip(shadow["depth"].tolist(), shadow.states[:, 0], strict=True):
        if depth:
            text = [*prompt.ids[: prompt.start + depth], *backend.header.ids]
            assert np.abs(state - pass_over(backend, text, site)[token - len(backend.header.ids)]).max() < TOLERANCE


@pytest.mark.parametrize("suffix", ["newline", "random", "user"])
def test_a_control_reads_what_is_appended(backend, tmp_path: Path, suffix: str) -> None:
    talk, site = conversation(4, 30), Site(2)
    _, store = gather(backend, [talk], tmp_path, CollectPlan((site,), suffix=suffix))
    ids, tokens = store.manifest.header_ids, store.manifest.tokens
    assert tokens == (CONTENT, *range(len(ids))) and ids != backend.header.ids
    if suffix == "random":
        assert len(ids) == len(backend.header.ids) and not set(ids) & set(backend.tokenizer.all_special_ids)
    prompt = backend.template.prompt(list(talk.messages), prefill=talk.response)
    checks = store.read([(site, token) for token in tokens])
    for depth, states in zip(checks["depth"].tolist(), checks.states, strict=True):
        expected = pass_over(backend, [*prompt.ids[: prompt.start + depth], *ids], site)[-len(ids) - 1 :]
        assert np.abs(states - expected).max() < TOLERANCE, depth


def test_random_tokens_are_the_same_every_time_and_ordinary(backend) -> None:
    from anydepth.probes.states.control_suffix import suffix_ids

    assert suffix_ids(backend, "random") == suffix_ids(backend_of("Qwen2"), "random")


def test_another_model_or_site_is_refused(backend, tmp_path: Path) -> None:
    plan = CollectPlan((Site(2),))
    gather(backend, [conversation(1)], tmp_path, plan)
    with pytest.raises(StoreError, match="collected with model"):
        gather(backend_of("Qwen2"), [conversation(2)], tmp_path, plan)
    with pytest.raises(StoreError, match="collected with sites"):
        gather(backend, [conversation(2)], tmp_path, CollectPlan((Site(3),)))
    with pytest.raises(UnsupportedModel, match="blocks 0 to 3"):
        gather(backend, [conversation(2)], tmp_path / "new", CollectPlan((Site(4),)))
    assert not (tmp_path / "new").exists()


def test_an_answer_longer_than_the_context_is_skipped_and_named(backend, tmp_path: Path) -> None:
    talks = [conversation(1, 600), conversation(2)]
    report, store = gather(backend, talks, tmp_path, CollectPlan((Site(2),)))
    assert report.skipped == [("c1", "prompt and answer do not fit the context of 512 tokens")]
    assert set(store.read([(Site(2), 0)])["id"].tolist()) == {"c2"}
    short = CollectPlan((Site(2),), longest=100)
    report, _ = gather(backend, talks, tmp_path, short)
    assert not report.skipped and (report.answers, report.present) == (2, 0)  # another `longest` is another reading
    with pytest.raises(StoreError, match="read in two ways"):
        store.read([(Site(2), 0)])
    _, alone = gather(backend, talks, tmp_path / "short", short)
    assert set(alone.read([(Site(2), 0)])["id"].tolist()) == {"c1", "c2"}


@pytest.mark.parametrize("family", ["Llama", "Falcon-H1 (hybrid)"])
def test_an_answer_just_fits_or_is_skipped_but_never_breaks_the_run(family: str, tmp_path: Path) -> None:
    backend = backend_of(family)
    talks = [replace(conversation(1, length), id=f"n{length}") for length in range(492, 504)]
    plan = CollectPlan(sites_for(backend, [1]), (0,), schedule=Every(500, doubling=False))
    report, _ = gather(backend, talks, tmp_path, plan)
    assert 0 < len(report.skipped) < len(talks) == report.done


def test_the_parts_together_are_one_run(backend, tmp_path: Path) -> None:
    talks, plan = conversations(70, longest=12), CollectPlan((Site(2),), (2,))
    for index in (1, 0):
        gather(backend, talks, tmp_path / "parts", replace(plan, part=(index, 2)))
    _, whole = gather(backend, talks, tmp_path / "whole", plan)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole") and len(whole.shards()) == 3


def contents(path: Path) -> dict[str, bytes]:
    return {shard.name: shard.read_bytes() for shard in StateStore(path).shards()}


SLOWLY = """
import json, sys, time
from anydepth.conversations.dataset import Conversation
from tests.contract.contract import backend_of
from tests.contract.test_collect_real import KILLED_PLAN, gather
facts, path = json.load(open(sys.argv[1])), sys.argv[2]
talks = [Conversation(**{**each, "messages": tuple(each["messages"])}) for each in facts]
gather(backend_of("Llama"), talks, path, KILLED_PLAN, progress=lambda *_: time.sleep(0.3))
"""
KILLED_PLAN = CollectPlan((Site(2), Site(3)))


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_same_states(backend, tmp_path: Path) -> None:
    talks = [replace(each, id=f"k{n}") for n, each in enumerate(conversations(120, longest=80))]
    data = tmp_path / "talks.json"
    data.write_text(json.dumps([asdict(talk) for talk in talks]))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, str(data), str(killed)], env=environment, cwd=ROOT)
    begun = time.monotonic()
    while not list((killed / "states").glob("*.parquet")):
        assert time.monotonic() - begun < 120 and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert 0 < len(contents(killed)) < 4, "the run was over before it was killed"
    gather(backend, talks, killed, KILLED_PLAN)
    gather(backend, talks, tmp_path / "whole", KILLED_PLAN)
    assert contents(killed) == contents(tmp_path / "whole") and len(contents(killed)) == 4


def test_wrapped_conversations_are_collected_beside_their_originals(backend, tmp_path: Path) -> None:
    talks = conversations(4)
    report, store = gather(backend, [*talks, *wrap(talks)], tmp_path, CollectPlan((Site(2),), (0,)))
    keys = store.read([(Site(2), 0)])
    assert report.answers == 8 and len(set(keys["answer"].tolist())) == 8
    assert len(set(keys["prompt_key"].tolist())) == len({talk.prompt_key for talk in talks})


def test_the_models_own_greedy_answers_are_those_of_generate(backend, tmp_path: Path) -> None:
    talks = [conversation(n, 20) for n in range(8)]
    options = AnswerOptions(12, (5,), {"do_sample": False})
    report = write_answers(backend, talks, tmp_path / "own.jsonl", options=options)
    assert (report.answers, report.continuations, report.left_out) == (4, 4, [])
    found = {each.id.rpartition("-")[0]: each for each in load(tmp_path / "own.jsonl")}
    for talk in talks:
        prefix = None if talk.label == "benign" else " ".join(talk.response.split()[:5])
        prompt = backend.template.prompt(list(talk.messages), prefill=prefix)
        (plain,) = backend.unguarded([prompt], max_new_tokens=12, do_sample=False)
        expected = backend.decode_text((*prompt.ids[prompt.start :], *plain))
        assert found[f"{talk.id}+own"].response == expected, talk.id
    collected, _ = gather(backend, list(found.values()), tmp_path / "store", CollectPlan((Site(2),)))
    assert collected.answers == 8


def test_sampled_answers_are_repeated_by_the_seed(backend, tmp_path: Path) -> None:
    talks = [conversation(2 * n, 20) for n in range(5)]

    def texts(name: str, seed: int) -> bytes:
        options = AnswerOptions(12, sampling={"do_sample": True, "temperature": 1.5}, seed=seed)
        return write_answers(backend, talks, tmp_path / name, options=options).path.read_bytes()

    torch.manual_seed(1)
    first = texts("a.jsonl", 3)
    torch.manual_seed(2)
    assert texts("b.jsonl", 3) == first != texts("c.jsonl", 4)


def test_every_block_can_be_read(backend, tmp_path: Path) -> None:
    sites = sites_for(backend, range(len(find_blocks(backend.model))))
    report, store = gather(backend, [conversation(1)], tmp_path, CollectPlan(sites))
    assert report.answers == 1 and store.manifest.sites == sites


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk."""
    path = tmp_path_factory.mktemp("model")
    tiny.tiny_model("Llama").save_pretrained(path)
    tiny.tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="class")
def cluster() -> Iterator[None]:
    """A local cluster, for workers that would else each be waited for again."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield
    ray.shutdown()


@pytest.mark.slow
class TestRay:
    """Two workers on a local cluster."""

    @pytest.fixture(autouse=True, scope="class")
    def _ray(self) -> Iterator[None]:
        pytest.importorskip("ray")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
            yield

    def run(self, folder: Path, talks: Sequence[Conversation], path: Path, plan: Any, **options: Any) -> Collected:
        from anydepth.probes.states.ray import Workers, collect_with_ray, load_backend

        opened = path.with_name(f"{path.name}-opened")
        opened.mkdir(exist_ok=True)

        def open_backend() -> Any:
            opened.joinpath(uuid.uuid4().hex).touch()
            return load_backend(str(folder), dtype="float32")

        return collect_with_ray(open_backend, talks, path, plan, workers=Workers(2, cpus=1), **options)

    def test_a_cluster_is_started_and_ended_where_there_is_none(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedModel, match="blocks 0 to 3"):
            self.run(folder, conversations(3), tmp_path / "a", CollectPlan((Site(9),)))
        assert not pytest.importorskip("ray").is_initialized()

    @pytest.mark.usefixtures("cluster")
    def test_the_same_shards_come_out(self, folder: Path, tmp_path: Path) -> None:
        from anydepth.backends.transformers import load as load_model

        talks = [*conversations(100, longest=30), conversation(101, 600)]
        plan = CollectPlan((Site(2), Site(3)), schedule=Every(9))
        here, store = gather(load_model(folder, dtype="float32"), talks, tmp_path / "here", plan)
        self.run(folder, talks[:32], tmp_path / "ray", plan)
        before = len(list((tmp_path / "ray-opened").iterdir()))
        seen: list[tuple[int, int, int]] = []
        report = self.run(folder, talks, tmp_path / "ray", plan, progress=lambda *figures: seen.append(figures))
        opened = len(list((tmp_path / "ray-opened").iterdir())) - before
        assert opened == 3, "one to make the store, then two workers"
        other = StateStore(tmp_path / "ray")
        assert replace(other.manifest, versions={}) == replace(store.manifest, versions={})
        assert [shard.name for shard in other.shards()] == [shard.name for shard in store.shards()]
        reads = [(site, token) for site in plan.sites for token in store.manifest.tokens]
        one, two = store.read(reads), other.read(reads)
        assert {name: column.tolist() for name, column in one.columns.items()} == {
            name: column.tolist() for name, column in two.columns.items()
        }
        np.testing.assert_allclose(two.states, one.states, atol=1e-5)
        assert (report.present, report.skipped) == (32, here.skipped) and len(here.skipped) == 1
        assert report.answers + report.present == here.answers
        assert seen[0] == (32, len(talks), 0) and seen[-1] == (len(talks), len(talks), report.tokens)

    @pytest.mark.usefixtures("cluster")
    def test_what_a_worker_refuses_is_said_as_it_is_in_process(self, folder: Path, tmp_path: Path) -> None:
        self.run(folder, conversations(3), tmp_path / "b", CollectPlan((Site(2),)))
        with pytest.raises(StoreError, match="collected with sites"):
            self.run(folder, conversations(3), tmp_path / "b", CollectPlan((Site(3),)))
        with pytest.raises(UnsupportedModel, match="blocks 0 to 3"):
            self.run(folder, conversations(3), tmp_path / "c", lambda backend: CollectPlan(sites_for(backend, [7])))
