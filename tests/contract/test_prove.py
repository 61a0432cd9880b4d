"""A model on which no check can work is refused when the guard is made, with the reason and a remedy."""

import functools
import inspect
import sys
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from anydepth import Guard, Rethink, Threshold
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.inputs import CACHE_NAMES, ForwardInputs, _looks_ahead
from anydepth.errors import ConfigError, TemplateError, UnsupportedModel
from tests import tiny
from tests.contract.test_inside_prefill import PREFILL, probe_of

SMALL = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
RECURRENT = {**SMALL, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "lru_width": 32}
HYBRID = {**tiny._SMALL, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8, "block_size": 16}
SHARED = {**tiny._SMALL, "head_dim": 8, "num_kv_shared_layers": 2, "sliding_window": 24}
GEMMA = {"vocab_size_per_layer_input": 256, "hidden_size_per_layer_input": 8}
TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
ROFORMER_DECODES = "create_causal_mask" in inspect.getsource(sys.modules[transformers.RoFormerModel.__module__])
"""Whether this Transformers makes a decoder of RoFormer with is_decoder=True; 5.16 does not."""
LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}


def backend_of(config: str, model: str, **options: Any) -> TransformersBackend:
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**options)).float().eval()
    for parameter in built.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return TransformersBackend(built, tiny.tiny_tokenizer())


def recurrent_gemma() -> TransformersBackend:
    return backend_of("RecurrentGemmaConfig", "RecurrentGemmaForCausalLM", **RECURRENT, attention_window_size=64)


@pytest.mark.parametrize("detector", ["probe", "rethink"])
def test_a_model_whose_state_a_check_changes(detector: str) -> None:
    backend = recurrent_gemma()
    message = r"changes the answer's own cache.*take a model that passes"
    if detector == "rethink" and Version(transformers.__version__) < Version("5.20"):
        message = "a check at depth 0 failed in a trial"  # it cannot be decoded behind a cache there
    with pytest.raises(UnsupportedModel, match=message):
        Guard.from_backend(backend, probe_of(backend) if detector == "probe" else Rethink())


@pytest.mark.parametrize("detector", ["probe", "rethink"])
def test_a_model_with_a_cache_of_its_own(detector: str) -> None:
    backend = backend_of("MiniMaxConfig", "MiniMaxForCausalLM", **HYBRID, **LINEAR)
    with pytest.raises(UnsupportedModel, match=r"a check at depth 0 failed in a trial: ValueError: MiniMax uses cache"):
        Guard.from_backend(backend, probe_of(backend) if detector == "probe" else Rethink())


def test_a_model_that_reads_in_both_directions() -> None:
    options = {**SMALL, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    with pytest.raises(UnsupportedModel, match=r"BertLMHeadModel reads a text in both directions.*is_decoder=True"):
        backend_of("BertConfig", "BertLMHeadModel", **options)
    backend_of("BertConfig", "BertLMHeadModel", **options, is_decoder=True)
    small = {name: value for name, value in tiny._SMALL.items() if name != "num_key_value_heads"}
    backend_of("GPTNeoXConfig", "GPTNeoXForCausalLM", **small, is_decoder=False)  # is causal whatever it says
    if not ROFORMER_DECODES:
        return
    backend = backend_of("RoFormerConfig", "RoFormerForCausalLM", **options, is_decoder=True)
    backend.model.config.is_decoder = False  # it looks ahead from now on
    with pytest.raises(UnsupportedModel, match=r"another state than the text has"):
        Guard.from_backend(backend, probe_of(backend))
    with pytest.raises(UnsupportedModel, match=r"other probabilities than the text gives.*anydepth inspect"):
        Guard.from_backend(backend, Rethink())


@functools.wraps(transformers.Phi3ForCausalLM.prepare_inputs_for_generation)
def without_the_text(model: Any, input_ids: torch.Tensor, **given: Any) -> dict[str, Any]:
    """Phi-3's own method as it was up to Transformers 5.19."""
    if input_ids.shape[1] > 40:
        given = {name: None if name in CACHE_NAMES else value for name, value in given.items()}
    return transformers.GenerationMixin.prepare_inputs_for_generation(model, input_ids, **given)


def test_longrope_needs_a_library_that_runs_the_text_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope["original_max_position_embeddings"] = 40
    options = {**tiny._SMALL, "rope_parameters": rope, "original_max_position_embeddings": 40}
    monkeypatch.setattr(transformers.Phi3ForCausalLM, "prepare_inputs_for_generation", without_the_text)
    with pytest.raises(
        UnsupportedModel, match=r"Phi3ForCausalLM has other position factors beyond 40 tokens.*5\.20', or"
    ):
        backend_of("Phi3Config", "Phi3ForCausalLM", **options)
    backend_of("LlamaConfig", "LlamaForCausalLM", **tiny._SMALL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_whose_layers_do_not_say_so(dtype: torch.dtype) -> None:
    options = {**SMALL, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    encoder, decoder = (
        transformers.RoFormerForCausalLM(transformers.RoFormerConfig(**options, is_decoder=is_decoder)).to(dtype).eval()
        for is_decoder in (False, True)
    )
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        parameter.data.mul_(4 if parameter.ndim > 1 else 1)
    assert not any(hasattr(each, "is_causal") for each in encoder.modules())
    with pytest.raises(UnsupportedModel, match="RoFormerForCausalLM reads a text in both directions"):
        ForwardInputs(encoder)
    assert _looks_ahead(decoder) is not ROFORMER_DECODES
    if ROFORMER_DECODES:
        ForwardInputs(decoder)
    else:
        with pytest.raises(UnsupportedModel, match=r"is_decoder=True in its config\.json.*use a newer Transformers"):
            ForwardInputs(decoder)


@pytest.mark.parametrize(
    ("config", "model", "options", "reason"),
    [
        ("MptConfig", "MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 512}, "differ"),
        ("BloomConfig", "BloomForCausalLM", {"hidden_size": 32, "n_layer": 4, "n_head": 4}, "ValueError"),
    ],
)
def test_a_model_that_cannot_take_the_packed_pass_is_read_on_forks(
    config: str, model: str, options: dict[str, Any], reason: str
) -> None:
    backend = backend_of(config, model, vocab_size=tiny.VOCABULARY, **options)
    backend.model.generation_config.use_cache = True
    guard = Guard.from_backend(backend, probe_of(backend), policy=Threshold(1.0))
    assert not backend.packs and reason in (backend.packing_refused or "")
    scan = guard.scan("w1 w2", PREFILL)
    assert scan.method == "forks" and reason in scan.notes[0]
    live = guard.generate("w1 w2", prefill=PREFILL, max_new_tokens=1, do_sample=False)
    by_depth = {check.depth: check.score for check in live.checks}
    assert all(by_depth[check.depth] == pytest.approx(check.score, abs=1e-4) for check in scan.checks)


def test_a_state_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of("LlamaConfig", "LlamaForCausalLM", **tiny._SMALL)
    backend.model.model.layers[0].mlp.down_proj.weight.data.fill_(np.nan)
    with pytest.raises(UnsupportedModel, match="what it reads is not finite"):
        Guard.from_backend(backend, probe_of(backend))


def test_the_trial_leaves_the_random_state_alone() -> None:
    backend = backend_of("LlamaConfig", "LlamaForCausalLM", **tiny._SMALL)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    Guard.from_backend(backend, probe_of(backend))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("detector", ["probe", "rethink"])
def test_the_trial_is_on_the_cache_that_answers_will_be_on(detector: str) -> None:
    backend = backend_of("LlamaConfig", "LlamaForCausalLM", **tiny._SMALL)
    backend.model.generation_config.cache_implementation = "offloaded"
    with pytest.raises(ConfigError, match="cache_implementation in the model's generation config is 'offloaded'"):
        Guard.from_backend(backend, probe_of(backend) if detector == "probe" else Rethink())


def test_a_cache_of_the_models_own_choice_that_checks_cannot_work_on_is_refused() -> None:
    pytest.importorskip("optimum.quanto")
    backend = backend_of("LlamaConfig", "LlamaForCausalLM", **tiny._SMALL)
    backend.model.generation_config.cache_implementation = "quantized"  # groups of 64, which these layers are not
    with pytest.raises(
        UnsupportedModel, match=r"checks do not work on LlamaForCausalLM.*take cache_implementation \(quantized\) out"
    ):
        Guard.from_backend(backend, probe_of(backend))


@pytest.mark.parametrize("detector", ["probe", "rethink"])
def test_a_template_that_fills_the_context_by_itself(detector: str) -> None:
    tokenizer = tiny.tiny_tokenizer()
    default = f"<|im_start|>system\n{'w1 ' * 600}<|im_end|>\n"
    tokenizer.chat_template = f"{{% if messages[0]['role'] != 'system' %}}{default}{{% endif %}}{tiny.CHATML}"
    built = backend_of("LlamaConfig", "LlamaForCausalLM", **tiny._SMALL).model
    backend = TransformersBackend(built, tokenizer)
    with pytest.raises(TemplateError, match=r"even a message of one word.*context of 512.*shorter default system"):
        Guard.from_backend(backend, probe_of(backend) if detector == "probe" else Rethink())
