"""Which alterations of a model's weights are seen."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anydepth.backends.altered_weights import Alteration, adapter_digest, alterations

CONFIGS: dict[str, tuple[Any, str]] = {
    "GPTQ": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "4-bit (gptq)"),
    "GPTQ in words": ({"quant_method": "gptq", "bits": "4"}, "4-bit (gptq)"),
    "a width with a point": (
        {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4.0}}}},
        "4-bit (compressed-tensors)",
    ),
    "AWQ of an object": (SimpleNamespace(quant_method=SimpleNamespace(value="awq"), bits=4), "4-bit (awq)"),
    "bitsandbytes in 8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "8-bit (bitsandbytes)"),
    "bitsandbytes in 4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "4-bit (bitsandbytes)",
    ),
    "quanto": ({"quant_method": "quanto", "weights": "int2"}, "2-bit (quanto)"),
    "torchao": ({"quant_method": "torchao", "quant_type": "Int8WeightOnlyConfig(version=2)"}, "8-bit (torchao)"),
    "torchao, wider activations": (
        {"quant_method": "torchao", "quant_type": "Int8DynamicActivationInt4WeightConfig(group_size=32)"},
        "4-bit (torchao)",
    ),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}},
        "8-bit (compressed-tensors)",
    ),
    "compressed-tensors, as Transformers keeps it": (
        SimpleNamespace(
            quant_method=SimpleNamespace(value="compressed-tensors"),
            quantization_config=SimpleNamespace(config_groups={"g": SimpleNamespace(weights={"num_bits": 4})}),
        ),
        "4-bit (compressed-tensors)",
    ),
    "compressed-tensors, sparse and in 8 bits": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"weights": {"num_bits": 8}}},
            "sparsity_config": {"format": "sparse-24-bitmask", "sparsity_structure": "2:4"},
        },
        "8-bit (compressed-tensors)",
    ),
    "compressed-tensors, sparse only": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {},
            "sparsity_config": {"format": "sparse-24-bitmask", "sparsity_structure": "2:4"},
        },
        "sparse (compressed-tensors 2:4)",
    ),
    "compressed-tensors, sparse only, as Transformers keeps it": (
        SimpleNamespace(quant_method=SimpleNamespace(value="compressed-tensors"), quantization_config=None),
        "sparse (compressed-tensors)",
    ),
    "compressed-tensors of the cache alone": (
        {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}, "sparsity_config": {}},
        "quantised (compressed-tensors)",
    ),
    "ModelOpt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, "8-bit (modelopt)"),
    "ModelOpt, NVFP4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "4-bit (modelopt)"),
    "ModelOpt, wider activations": ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "4-bit (modelopt)"),
    "ModelOpt, a file of its own": (
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
        "8-bit (modelopt)",
    ),
    "ModelOpt, mixed": (
        {
            "quant_method": "modelopt",
            "quantization": {
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "W4A16_AWQ"}},
            },
        },
        "4-bit (modelopt)",
    ),
    "ModelOpt, width unknown": ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "quantised (modelopt)"),
    "HQQ": (
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3}}}, "3-bit (hqq)",
    ),
    "FP8": ({"quant_method": "fp8", "fmt": "e4m3"}, "8-bit (fp8)"),
    "MXFP4": ({"quant_method": "mxfp4"}, "4-bit (mxfp4)"),
    "width unknown": ({"quant_method": "own"}, "quantised (own)"),
    "nothing known": ({}, "quantised (unknown method)"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_a_quantization_config_is_read(case: str) -> None:
    config, said = CONFIGS[case]
    loaded: Any = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(quantization_config=config)))
    assert list(map(str, alterations(loaded))) == [said]
    served: Any = SimpleNamespace(quantization_config=config)  # as vLLM's has it
    assert list(map(str, alterations(served))) == [said]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("Q8_0", ["8-bit (gguf Q8_0)"]),
        ("Q4_K_M", ["4-bit (gguf Q4_K_M)"]),
        ("IQ3_XXS", ["3-bit (gguf IQ3_XXS)"]),
        ("TQ1_0", ["1-bit (gguf TQ1_0)"]),
        ("MXFP4_MOE", ["4-bit (gguf MXFP4_MOE)"]),
        ("BF16", []),
        ("F32", []),
    ],
)
def test_the_format_of_a_gguf_file_is_read(made: str, said: list[str]) -> None:
    backend: Any = SimpleNamespace(gguf_format=made, model=None)
    assert list(map(str, alterations(backend))) == said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/model-GGUF:Q4_K_M", ["4-bit (gguf Q4_K_M)"]),
        ("/models/model-IQ3_XXS.gguf", ["3-bit (gguf IQ3_XXS)"]),
        ("/models/model.q8_0-00001-of-00002.gguf", ["8-bit (gguf Q8_0)"]),
        ("org/model-GGUF:MXFP4", ["4-bit (gguf MXFP4)"]),
        ("org/model-GGUF:BF16", []),
        ("/models/Q4_K_M/model.gguf", ["quantised (gguf)"]),
    ],
)
def test_the_format_of_a_gguf_file_that_vllm_serves_is_that_of_its_name(name: str, said: list[str]) -> None:
    identity = SimpleNamespace(name=name)
    served: Any = SimpleNamespace(quantization_config={"quant_method": "gguf"}, identity=identity)
    assert list(map(str, alterations(served))) == said


def test_weights_that_compressed_tensors_left_as_they_are_are_not_altered() -> None:
    config = {"quant_method": "compressed-tensors", "config_groups": {}, "sparsity_config": {"format": "dense"}}
    assert alterations(SimpleNamespace(quantization_config=config)) == ()


def parameter(module: str, name: str, **facts: Any) -> Any:
    return type(name, (SimpleNamespace,), {"__module__": module})(**facts)


PARAMETERS: dict[str, tuple[Any, list[str]]] = {
    "torchao": (parameter("torchao.quantization", "Int8Tensor"), ["8-bit (torchao)"]),
    "torchao, kept wider": (
        parameter("torchao.quantization", "IntxUnpackedToInt8Tensor", target_dtype=torch.int4), ["4-bit (torchao)"],
    ),
    "quanto": (
        parameter("optimum.quanto.tensor", "WeightQBitsTensor", qtype=SimpleNamespace(name="qint4")), ["4-bit (quanto)"]
    ),
    "bitsandbytes": (parameter("bitsandbytes.nn.modules", "Params4bit"), ["quantised (bitsandbytes)"]),
    "plain": (torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)), []),
}  # fmt: skip


@pytest.mark.parametrize("case", PARAMETERS)
def test_the_classes_of_parameters_are_looked_at(case: str) -> None:
    each, said = PARAMETERS[case]
    plain = torch.nn.Parameter(torch.zeros(2))
    model = SimpleNamespace(config=SimpleNamespace(), named_parameters=lambda: [("a", plain), ("b", each)])
    assert list(map(str, alterations(SimpleNamespace(model=model)))) == said


def test_an_adapter_is_named_by_the_digest_of_its_weights() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    model = SimpleNamespace(config=SimpleNamespace(), named_parameters=lambda: [("q.lora_A.weight", weight)])
    backend: Any = SimpleNamespace(model=model, adapter=True, reads_base_weights=False)
    (found,) = alterations(backend)
    assert found.kind == "adapter" and len(found.how) == 16
    with torch.no_grad():
        weight.add_(1)
    assert alterations(backend)[0].how != found.how
    backend.reads_base_weights = True  # the states are those below
    assert alterations(backend) == ()
    assert list(map(str, alterations(SimpleNamespace(adapter=True)))) == ["adapter (of requests)"]


def test_an_adapter_whose_weights_are_kept_elsewhere_has_no_digest() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2, device="meta"))
    model = SimpleNamespace(config=SimpleNamespace(), named_parameters=lambda: [("q.lora_A.weight", weight)])
    backend: Any = SimpleNamespace(model=model, adapter=True)
    assert adapter_digest(backend) is None
    assert list(map(str, alterations(backend))) == ["adapter (of unknown weights)"]


def test_several_are_joined() -> None:
    found = [Alteration("4-bit", "awq"), Alteration("adapter", "0123")]
    assert str(Alteration.joined(found)) == "4-bit + adapter (awq + 0123)"
    assert Alteration.joined(found[:1]) == found[0]
