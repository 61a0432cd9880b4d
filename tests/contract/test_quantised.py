"""Quantised weights keep both contracts: the stream is the unguarded one, and forks read true states."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from anydepth import Guard, Threshold
from anydepth.backends.altered_weights import alterations
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.backends.transformers.identity import identify
from anydepth.scan import scan_answer
from tests import tiny
from tests.contract.contract import (
    GREEDY,
    MAX_NEW_TOKENS,
    SAMPLED,
    LooksAhead,
    largest_difference,
    prompt_of,
    run,
    watcher_for,
)
from tests.contract.test_cache_kinds import quanto_in_python  # noqa: F401  a fixture
from tests.contract.test_inside_prefill import probe_of

WIDE = {**tiny._SMALL, "hidden_size": 128, "intermediate_size": 128}
"""Groups of 128 inputs share a scale in some of the formats."""

TOLERANCE = 1e-3
"""Kernels of quantised products round differently for one row and for several."""


def quanto(weights: str) -> Callable[[], dict[str, Any]]:
    return lambda: {"quantization_config": transformers.QuantoConfig(weights=weights)}


def torchao(name: str, **options: Any) -> Callable[[], dict[str, Any]]:
    def made() -> dict[str, Any]:
        kind = getattr(importlib.import_module("torchao.quantization"), name)
        return {"quantization_config": transformers.TorchAoConfig(kind(**options)), "dtype": "float32"}

    return made


def bitsandbytes() -> dict[str, Any]:
    return {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}


# Format -> the package that it needs, and the arguments of `load`.
FORMATS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "quanto int8": ("optimum.quanto", quanto("int8")),
    "quanto int4": ("optimum.quanto", quanto("int4")),
    "torchao int8": ("torchao", torchao("Int8WeightOnlyConfig")),
    "torchao int4": ("torchao", torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4)),
    "bitsandbytes int8": ("bitsandbytes", bitsandbytes),
    "GGUF Q8_0": ("gguf", lambda: {"gguf_file": "model.gguf"}),
}


def model() -> Any:
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**WIDE)).float().eval()
    for parameter in made.parameters():
        parameter.data.mul_(4 if parameter.ndim > 1 else 1.5)
    return made


def write_gguf(folder: Path, made: Any) -> None:
    """The weights of a Llama in 8 bits, as llama.cpp keeps them (but for the order of rows of queries and keys)."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(folder / "model.gguf"), "llama")
    writer.add_block_count(4), writer.add_context_length(512), writer.add_embedding_length(128)
    writer.add_feed_forward_length(128), writer.add_head_count(4), writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6), writer.add_vocab_size(tiny.VOCABULARY), writer.add_rope_dimension_count(32)
    inner = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    eight = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in made.state_dict().items():
        path = name.removesuffix(".weight")
        if path in outer:
            there = outer[path]
        else:
            _, _, block, rest = path.split(".", 3)
            there = f"blk.{block}.{inner[rest]}"
        values = tensor.numpy()
        if tensor.ndim == 1:
            writer.add_tensor(f"{there}.weight", values)
        else:
            writer.add_tensor(f"{there}.weight", gguf.quants.quantize(values, eight), raw_dtype=eight)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised") / "model"
    made = model()
    made.save_pretrained(folder)
    tiny.tiny_tokenizer().save_pretrained(folder)
    if importlib.util.find_spec("gguf"):
        write_gguf(folder, made)
    return folder


@pytest.fixture(params=FORMATS)
def backend(request: pytest.FixtureRequest, saved: Path) -> TransformersBackend:
    package, arguments = FORMATS[request.param]
    pytest.importorskip(package, reason=f"{package} is not installed")
    if package == "optimum.quanto":
        request.getfixturevalue("quanto_in_python")
    return load(saved, **arguments())


def test_the_stream_is_the_unguarded_one_and_states_are_true(backend: TransformersBackend) -> None:
    prompt = prompt_of(backend)
    for options in (GREEDY, SAMPLED):
        (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **options)
        watcher = watcher_for(backend)
        (released,), _ = run(backend, [prompt], watcher, **options)
        assert released == plain
        scale = max(float(np.abs(state).max()) for _, state in watcher.seen)
        assert largest_difference(backend, prompt, released, watcher) < TOLERANCE * scale
    (looked,), _ = run(backend, [prompt], LooksAhead(), **SAMPLED)
    assert looked == plain


def test_a_scan_gives_the_scores_of_the_answer(backend: TransformersBackend) -> None:
    guard = Guard.from_backend(backend, probe_of(backend), policy=Threshold(1.0))
    assert backend.packs
    prompt = prompt_of(backend, prefill=" ".join(f"w{n}" for n in range(60, 90)))
    packed, forks = (scan_answer(backend, guard.detector, guard.config, prompt, packed=way) for way in (True, False))
    assert (packed.method, forks.method) == ("packed", "forks")
    for one, other in zip(packed.checks, forks.checks, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-3)


def test_how_the_weights_are_quantised_is_seen(
    backend: TransformersBackend, request: pytest.FixtureRequest, saved: Path
) -> None:
    package, _, said = request.node.callspec.params["backend"].partition(" ")
    bits, how = said.removeprefix("int").removeprefix("Q")[0], "gguf Q8_0" if package == "GGUF" else package
    assert list(map(str, alterations(backend))) == [f"{bits}-bit ({how})"]
    if package in ("quanto", "torchao"):  # quantised after it was loaded, no config says so
        del backend.model.config.quantization_config
        assert list(map(str, alterations(backend))) == [f"{bits}-bit ({package})"]
    assert alterations(load(saved)) == ()


def test_the_fingerprint_is_that_of_the_weights_before(backend: TransformersBackend) -> None:
    before, ids = model(), torch.arange(9)[None]
    assert backend.identity.fingerprint == identify(before).fingerprint
    with torch.no_grad():
        assert (backend.model(ids).logits - before(ids).logits).abs().max() > 1e-3  # they are quantised
