"""Architectures with a peculiarity: each reads true states, or is refused by name with a remedy that works."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from anydepth import Guard, Rethink, Threshold
from anydepth.backends.protocol import WHOLE, Capability, CheckPoint, FinishedAnswer, Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.blocks import default_site, find_blocks
from anydepth.backends.transformers.identity import identify
from anydepth.backends.transformers.read import read
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import UnsupportedModel
from anydepth.probes.states.collect import collect_into
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.sites import sites_for
from tests import tiny
from tests.contract.contract import (
    GREEDY,
    MAX_NEW_TOKENS,
    SAMPLED,
    TOLERANCE,
    LooksAhead,
    largest_difference,
    prompt_of,
    run,
    watcher_for,
)
from tests.contract.test_inside_prefill import probe_of
from tests.contract.test_prove import GEMMA, SHARED, TWO_KINDS, backend_of, recurrent_gemma
from tests.conversations import conversations

SWITCH = 40
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": SWITCH,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}
LONG = {"rope_parameters": ROPE, "original_max_position_embeddings": SWITCH, "sliding_window": None}
QWEN4 = {
    "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "hc_count": 2,
    "shared_expert_intermediate_size": 16, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "hc_lowrank": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "indexer_n_heads": 4, "indexer_kv_heads": 1,
    "indexer_head_dim": 8, "indexer_budget": 64, "indexer_compress_ratio": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip


def phi() -> TransformersBackend:
    """A model whose position factors change, for the whole text, beyond 40 tokens."""
    if Version(transformers.__version__) < Version("5.20"):
        pytest.skip("this Transformers loses the text there, and such a model is refused")
    return backend_of("Phi3Config", "Phi3ForCausalLM", **tiny._SMALL, **LONG)


# -- position factors that change with the length (longrope) -----------------------------------------------------------


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_states_are_true_where_the_position_factors_change(options: dict[str, Any]) -> None:
    backend = phi()
    prompt = prompt_of(backend)
    assert len(prompt.ids) < SWITCH < len(prompt.ids) + MAX_NEW_TOKENS - 7
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **options)
    watcher = watcher_for(backend)
    (released,), _ = run(backend, [prompt], watcher, **options)
    assert released == plain
    assert largest_difference(backend, prompt, released, watcher) < TOLERANCE
    looked, _ = run(backend, [prompt], LooksAhead(), **options)
    assert looked == [plain]


def test_a_prompt_that_is_beyond_the_change_already() -> None:
    backend = phi()
    prompt = prompt_of(backend, words=SWITCH)
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    watcher = watcher_for(backend)
    assert run(backend, [prompt], watcher, **GREEDY)[0] == [plain]
    assert largest_difference(backend, prompt, plain, watcher) < TOLERANCE


def test_a_replay_and_its_means_are_true_where_the_position_factors_change() -> None:
    backend = phi()
    prompt = prompt_of(backend, prefill=" ".join(f"w{n}" for n in range(60, 110)))
    site, answer = default_site(backend.model), prompt.ids[prompt.start :]
    reads = [Read(site, backend.header.read_index), Read(site, -5), Read(site, WHOLE)]
    session = backend.replay(type(prompt)(prompt.ids[: prompt.start]), answer)
    watcher, at = watcher_for(backend), 0
    for depth in (7, 14, 21, 28, 50):
        session.decode(depth - at)
        at = depth
        states = session.hidden_states([CheckPoint(0, depth)], reads)[0]
        watcher.seen.append((CheckPoint(0, depth), states[0]))
        ids = torch.tensor([prompt.ids[: prompt.start + depth]])
        text = read(backend.model, (site,), {"input_ids": ids, "use_cache": False})[site][0, prompt.start :].float()
        assert np.abs(states[1] - text[-5:].mean(0).numpy()).max() < TOLERANCE
        assert np.abs(states[2] - text.mean(0).numpy()).max() < TOLERANCE
    assert largest_difference(backend, type(prompt)(prompt.ids[: prompt.start]), answer, watcher) < TOLERANCE


def test_a_scan_is_packed_up_to_the_change_and_forked_beyond_it() -> None:
    backend = phi()
    guard = Guard.from_backend(backend, probe_of(backend), policy=Threshold(1.0))
    assert guard.scan("w1 w2", " ".join(f"w{n}" for n in range(20))).method == "packed"
    scan = guard.scan("w1 w2", " ".join(f"w{n}" for n in range(60)))
    assert scan.method == "forks" and "position factors change there for the whole text" in scan.notes[0]


def test_a_batch_of_different_lengths_is_refused_beyond_the_change() -> None:
    backend = phi()
    prompts = [prompt_of(backend, words=3, prefill=None), prompt_of(backend, words=7, prefill=None)]
    with pytest.raises(UnsupportedModel, match=r"different lengths in one batch beyond 40 tokens.*one prompt"):
        backend.open(prompts, max_new_tokens=40)
    with pytest.raises(UnsupportedModel, match="different lengths in one batch beyond 40 tokens"):
        backend.replay_batch(prompts, [[9] * 40] * 2, [False] * 2, eos=2)
    backend.open(prompts, max_new_tokens=4).close()
    same = [prompt_of(backend), prompt_of(backend)]
    watcher = watcher_for(backend)
    released, _ = run(backend, same, watcher, **GREEDY)
    assert largest_difference(backend, same[0], released[0], watcher) < TOLERANCE


# -- the default site --------------------------------------------------------------------------------------------------


def test_the_default_site_is_below_the_blocks_that_share_keys() -> None:
    backend = backend_of("Gemma4TextConfig", "Gemma4ForCausalLM", **SHARED, **GEMMA, **TWO_KINDS)
    assert default_site(backend.model) == Site(1, "input_layernorm")  # 4 blocks, of which 2 share
    prompt, watcher = prompt_of(backend), watcher_for(backend)
    guard = Guard.from_backend(backend, probe_of(backend), policy=Threshold(1.0))
    assert not guard.generate("w1", max_new_tokens=9, **GREEDY).verdict.errors
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **GREEDY)
    assert run(backend, [prompt], watcher, **GREEDY)[0] == [plain]
    assert largest_difference(backend, prompt, plain, watcher) < TOLERANCE


def test_the_default_site_of_blocks_with_several_streams() -> None:
    backend = backend_of("Qwen4ExpTextConfig", "Qwen4ExpForCausalLM", **tiny._SMALL, **QWEN4)
    assert default_site(backend.model) == Site(3, "attn_hyper_connection")
    Guard.from_backend(backend, probe_of(backend))
    prompt, watcher = prompt_of(backend), watcher_for(backend)
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **GREEDY)
    assert run(backend, [prompt], watcher, **GREEDY)[0] == [plain]
    assert largest_difference(backend, prompt, plain, watcher) < TOLERANCE


# -- caches of a model's own -------------------------------------------------------------------------------------------

CSA = "compressed_sparse_attention"
EXPERTS = {"n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
INDEX = {"index_n_heads": 4, "index_head_dim": 8}
OWN_CACHES = {
    "DeepseekV4": {
        **EXPERTS, **INDEX, "num_key_value_heads": 1, "head_dim": 16, "q_lora_rank": 16, "sliding_window": 24,
        "index_topk": 16, "o_groups": 2, "o_lora_rank": 16, "hc_mult": 2,
        "layer_types": ["sliding_attention", CSA, "heavily_compressed_attention", CSA],
        "compress_rates": {CSA: 4, "heavily_compressed_attention": 8},
    },
    "MiniMaxM3VL": {
        **EXPERTS, **INDEX, "head_dim": 8, "dense_intermediate_size": 48, "shared_intermediate_size": 48,
        "rotary_dim": 4, "index_block_size": 8, "index_topk_blocks": 2,
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
    },
}  # fmt: skip


def with_own_cache(name: str) -> TransformersBackend:
    config = f"{name}Config" if name == "DeepseekV4" else f"{name}TextConfig"
    return backend_of(config, f"{name}ForCausalLM", **{**tiny._SMALL, **OWN_CACHES[name]})


@pytest.mark.parametrize("name", OWN_CACHES)
def test_a_cache_of_the_models_own_is_forked(name: str) -> None:
    backend = with_own_cache(name)
    layers = {each["layer"] for each in backend.describe()["cache"]}
    assert any(each.startswith(name) for each in layers)
    Guard.from_backend(backend, probe_of(backend))
    prompts = [prompt_of(backend), prompt_of(backend, words=3, prefill=None)]
    for options in (GREEDY, SAMPLED):
        (plain,) = backend.unguarded(prompts[:1], max_new_tokens=MAX_NEW_TOKENS, seed=3, **options)
        watcher = watcher_for(backend)
        assert run(backend, prompts[:1], watcher, **options)[0] == [plain]
        assert largest_difference(backend, prompts[0], plain, watcher) < TOLERANCE
        assert run(backend, prompts[:1], LooksAhead(), **options)[0] == [plain]


# -- which list of blocks, and which weights ---------------------------------------------------------------------------


def moss() -> Any:
    """A model with an audio tower that has as many blocks as its language model."""
    if not hasattr(transformers, "MossTranscribeDiarizeConfig"):
        pytest.skip("this Transformers does not have the model yet")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 48}
    config = transformers.MossTranscribeDiarizeConfig(
        text_config={"model_type": "qwen3", **tiny._SMALL, "head_dim": 8}, audio_config={**sizes, "num_mel_bins": 8}
    )
    torch.manual_seed(0)
    return transformers.MossTranscribeDiarizeForConditionalGeneration(config).float().eval()


def test_blocks_and_fingerprint_are_those_of_the_language_model() -> None:
    model = moss()
    language = model.model.language_model
    assert find_blocks(model) is language.layers
    before = identify(model).fingerprint
    for name, weight in model.named_parameters():
        if "audio" in name:
            weight.data.add_(1)
    assert identify(model).fingerprint == before
    language.layers[2].input_layernorm.weight.data.add_(1)
    assert identify(model).fingerprint != before


def test_a_model_without_vectors_has_a_fingerprint_of_its_embeddings() -> None:
    one = backend_of("OlmoConfig", "OlmoForCausalLM", **tiny._SMALL).model
    assert all(weight.ndim > 1 for weight in one.parameters())
    before = identify(one).fingerprint
    assert identify(one).fingerprint == before
    one.get_input_embeddings().weight.data[3].add_(1)
    assert identify(one).fingerprint != before


def test_a_model_that_runs_its_layers_several_times_is_guarded_by_looking_ahead() -> None:
    backend = backend_of("HrmTextConfig", "HrmTextForCausalLM", **{**tiny._SMALL, "head_dim": 8})
    with pytest.raises(UnsupportedModel, match=r"HrmTextForCausalLM has no list of 32 blocks.*look-ahead detector"):
        default_site(backend.model)
    answer = Guard.from_backend(backend, Rethink()).generate("w1", max_new_tokens=4, **GREEDY)
    assert not answer.verdict.errors
    facts = backend.describe()
    assert facts["default_site"] is None and "no list of 32 blocks" in facts["site_reason"]


# -- masks and positions -----------------------------------------------------------------------------------------------


def test_a_model_that_masks_by_index_is_scanned_by_forks() -> None:
    options = {
        "vocab_size": 256, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "window_size": 24,
        "attention_types": [[["global", "local"], 2]], "max_position_embeddings": 512,
    }  # fmt: skip
    backend = backend_of("GPTNeoConfig", "GPTNeoForCausalLM", **options)
    assert not backend.packs and "mask by the index" in backend.describe()["packed_reason"]
    prompt = prompt_of(backend, prefill=" ".join(f"w{n}" for n in range(60, 120)))
    finished = FinishedAnswer(prompt, prompt.ids[prompt.start :], (0, 40))
    with pytest.raises(UnsupportedModel, match="cannot be read in a packed pass: it has layers that mask by the index"):
        backend.read_batch([finished], [default_site(backend.model)], tokens=[0])


def test_where_generate_counts_padding_a_check_counts_it_too() -> None:
    sizes = {"hidden_size": 32, "num_heads": 4, "depth": 2, "intermediate_size": 48, "out_hidden_size": 32}
    text = {"model_type": "exaone4", **tiny._SMALL, "head_dim": 8, "layer_types": ["full_attention"] * 4}
    more = {"vision_config": {**sizes, "num_key_value_heads": 2}, "text_config": text}
    backend = backend_of("Exaone4_5_Config", "Exaone4_5_ForConditionalGeneration", **more)
    assert backend.inputs.takes_positions and backend.inputs.counts_padding
    short, long = prompt_of(backend, words=3, prefill=None), prompt_of(backend, words=12, prefill=None)
    watcher = watcher_for(backend)
    released, _ = run(backend, [short, long], watcher, **GREEDY)
    padding = len(long.ids) - len(short.ids)
    point, state = next((p, s) for p, s in watcher.seen if p.row == 0 and p.depth == 14)
    whole = [*short.ids, *released[0][: point.depth], *backend.header.ids[: watcher.read_index + 1]]
    ids = torch.tensor([[0] * padding + whole])
    mask = torch.tensor([[0] * padding + [1] * len(whole)])
    given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}  # as `generate` feeds it
    true = read(backend.model, (watcher.site,), given)[watcher.site][0, -1].numpy()
    assert np.abs(state - true).max() < TOLERANCE
    assert not backend_of("LlamaConfig", "LlamaForCausalLM", **tiny._SMALL).inputs.counts_padding


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_site_that_does_not_run_on_the_whole_prompt_is_refused_and_another_works() -> None:
    backend = backend_of("Gemma4TextConfig", "Gemma4ForCausalLM", **SHARED, **GEMMA, **TWO_KINDS)
    if not hasattr(backend.model.get_decoder(), "_maybe_slice_kv_shared_inputs"):
        pytest.skip("this Transformers runs the upper blocks on the whole prompt")
    reads = (Read(Site(3), backend.header.read_index),)
    card = ProbeCard(model=backend.identity, header_ids=backend.header.ids, reads=reads)
    probe = LinearProbe(np.ones((1, backend.identity.hidden_size), np.float32), 0.0, card)
    with pytest.raises(UnsupportedModel, match=r"a check at depth 0 failed.*Rethink.*or another site"):
        Guard.from_backend(backend, probe)
    backend.prove(frozenset({Capability.HIDDEN_STATES}), [Read(default_site(backend.model), 3)])


def test_a_model_without_one_width_is_refused_by_name() -> None:
    options = {"vocab_size": tiny.VOCABULARY, "encoder_hash_byte_group_vocab": 256, "max_position_embeddings": 512}
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
    parts = {f"{part}_config": dict(sizes) for part in ("patcher", "encoder", "decoder", "global")}
    with pytest.raises(
        UnsupportedModel, match=r"BltForCausalLM has no .*hidden_size.* in its config.*anydepth inspect"
    ):
        backend_of("BltConfig", "BltForCausalLM", **options, **parts)


def test_the_self_test_says_what_works_and_how_well() -> None:
    tests = {each["check"]: each for each in backend_of("LlamaConfig", "LlamaForCausalLM", **tiny._SMALL).self_test()}
    assert [*tests] == ["state", "packed", "look-ahead"] and all(each["works"] for each in tests.values())
    assert tests["state"]["detail"].startswith("at 3.input_layernorm@3: two readings differ by 0.0e+00, a fork and the")
    assert tests["packed"]["detail"].startswith("off by ")
    rope = {"vocab_size": 256, "hidden_size": 32, "n_layer": 4, "n_head": 4}
    tests = {each["check"]: each for each in backend_of("BloomConfig", "BloomForCausalLM", **rope).self_test()}
    assert tests["state"]["works"] and not tests["packed"]["works"] and "ValueError" in tests["packed"]["detail"]
    options = {**tiny._SMALL, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8, "block_size": 16}
    layers = ["linear_attention", "full_attention"] * 2
    mini = backend_of("MiniMaxConfig", "MiniMaxForCausalLM", **options, layer_types=layers)
    tests = mini.self_test()
    assert not any(each["works"] for each in tests) and "MiniMax uses cache" in tests[0]["detail"]


def test_collecting_is_refused_where_a_check_changes_the_answer(tmp_path: Any) -> None:
    backend = recurrent_gemma()
    plan = CollectPlan(sites_for(backend))
    with pytest.raises(UnsupportedModel, match="changes the answer's own cache"):
        collect_into(tmp_path / "store", backend, conversations(1), plan)


def test_collecting_reads_by_forks_where_a_packed_pass_gives_other_states(tmp_path: Any) -> None:
    options = {"vocab_size": 256, "d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 512}
    backend = backend_of("MptConfig", "MptForCausalLM", **options)
    backend.model.generation_config.use_cache = True
    _, report = collect_into(tmp_path / "store", backend, conversations(1), CollectPlan(sites_for(backend)))
    assert report.answers == 1 and "differ from a fork's" in (report.by_forks or "")


def test_default_blocks_to_collect_are_those_that_run_on_every_token() -> None:
    backend = backend_of("Gemma4TextConfig", "Gemma4ForCausalLM", **SHARED, **GEMMA, **TWO_KINDS)
    assert backend.describe()["readable_layers"] == 2
    assert sites_for(backend) == (Site(1),)
