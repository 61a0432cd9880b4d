"""The plugin tells a checkpoint from its files as the library tells the loaded model, whatever else is stored there."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from anydepth.backends.checkpoint_identity import identify
from anydepth.backends.transformers.identity import identify as from_model
from tests import tiny

TEXT = {**tiny._SMALL, "model_type": "llama"}
SEES = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
SEES |= {"num_attention_heads": 4, "image_size": 16, "patch_size": 8, "projection_dim": 32}
HEARS = {"d_model": 32, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 8}
ROTARY = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
TOWERS: dict[str, dict[str, Any]] = {
    "Llava": {"text_config": TEXT, "vision_config": SEES},
    "Qwen2Audio": {
        "text_config": {**TEXT, "model_type": "qwen2"},
        "audio_config": {**HEARS, "model_type": "qwen2_audio_encoder", "max_source_positions": 32},
    },
    "Qwen2VL": {
        "text_config": {**TEXT, "model_type": "qwen2_vl_text", "rope_parameters": ROTARY},
        "vision_config": {"depth": 4, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
    },
}
"""Models with a tower of as many blocks as the language model has, each as wide."""


def a_model(build: Any) -> Any:
    """A model whose one-dimensional weights are random numbers, as no constructor makes them."""
    torch.manual_seed(7)
    model = build()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(-1, 1)
    return model


def changed(model: Any, part: Any) -> Any:
    """`model` with other one-dimensional weights in `part`."""
    for parameter in part.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(1)
    return model


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma-2", "Qwen3"])
def test_the_fingerprint_from_the_files_is_that_of_the_loaded_model(tmp_path, family):
    model = a_model(lambda: tiny.tiny_model(family))
    model.save_pretrained(tmp_path)
    found = identify(str(tmp_path), model.config)
    assert found.fingerprint == from_model(model).fingerprint and found.name == str(tmp_path)
    assert identify(str(tmp_path / "nowhere"), model.config).fingerprint == ""


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_is_not_taken_for_the_language_model(tmp_path, name):
    config = getattr(transformers, f"{name}Config")(**TOWERS[name])
    model = a_model(lambda: getattr(transformers, f"{name}ForConditionalGeneration")(config))
    tower = next(part for key, part in model.named_modules() if key.endswith(("vision_tower", "audio_tower", "visual")))
    model.save_pretrained(tmp_path / "one")
    changed(model, tower).save_pretrained(tmp_path / "other-tower")
    changed(model, model.get_decoder()).save_pretrained(tmp_path / "other-language-model")
    one, same, other = (
        identify(str(tmp_path / folder), model.config).fingerprint
        for folder in ("one", "other-tower", "other-language-model")
    )
    assert one == same != other == from_model(model).fingerprint


def a_checkpoint(folder: Any, weights: dict[str, tuple[int, ...]], file: str = "model.safetensors") -> str:
    """A file with weights of the given sizes, their numbers from their names."""
    folder.mkdir(exist_ok=True)
    save_file({key: torch.full(size, float(len(key))) for key, size in weights.items()}, folder / file)
    return str(folder)


def a_config() -> Any:
    text = SimpleNamespace(model_type="llama", hidden_size=4, num_hidden_layers=2, vocab_size=8)
    return SimpleNamespace(get_text_config=lambda decoder: text)


BLOCKS = {f"model.layers.{number}.norm.weight": (4,) for number in range(2)}
EMBEDDINGS = {"model.embed_tokens.weight": (8, 4)}
TOWER = {f"visual.blocks.{number}.longer_norm.weight": (4,) for number in range(2)}


def test_a_block_more_than_the_model_runs_is_left_out(tmp_path):
    """Of multi-token prediction; without the rule, the tower would be the only list of the right length."""
    plain = a_checkpoint(tmp_path / "plain", BLOCKS | EMBEDDINGS)
    more = a_checkpoint(tmp_path / "more", BLOCKS | EMBEDDINGS | TOWER | {"model.layers.2.norm.weight": (4,)})
    one, other = (identify(folder, a_config()).fingerprint for folder in (plain, more))
    assert one == other != ""


def test_where_there_is_no_telling_there_is_no_fingerprint(tmp_path):
    assert identify(a_checkpoint(tmp_path / "none", BLOCKS | TOWER), a_config()).fingerprint == ""
    head = {"lm_head.weight": (8, 4)}  # as near to the one as to the other
    assert identify(a_checkpoint(tmp_path / "head", BLOCKS | TOWER | head), a_config()).fingerprint == ""
    assert identify(a_checkpoint(tmp_path / "alone", BLOCKS), a_config()).fingerprint != ""


def test_weights_that_are_stored_twice_are_read_once(tmp_path):
    """Mistral puts its own file beside those that the index names."""
    plain = a_checkpoint(tmp_path / "plain", BLOCKS | EMBEDDINGS)
    twice = tmp_path / "twice"
    twice.mkdir()
    a_checkpoint(twice, BLOCKS, "model-1.safetensors")
    a_checkpoint(twice, EMBEDDINGS, "model-2.safetensors")
    again = {"layers.0.norm.weight": (4,), "layers.1.norm.weight": (4,), "tok_embeddings.weight": (8, 4)}
    a_checkpoint(twice, again, "consolidated.safetensors")
    assert identify(str(twice), a_config()).fingerprint == ""
    named = dict.fromkeys(BLOCKS, "model-1.safetensors") | dict.fromkeys(EMBEDDINGS, "model-2.safetensors")
    (twice / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    assert identify(str(twice), a_config()).fingerprint == identify(plain, a_config()).fingerprint != ""
