"""The model of random weights that benchmarks/gpu_vllm.sh measures where no checkpoint is at hand."""

import shutil
import subprocess
from pathlib import Path

import pytest
import transformers

from anydepth import LinearProbe
from anydepth.backends.checkpoint_identity import identify
from benchmarks.random_model import write
from tests.tiny import VOCABULARY, tiny_tokenizer

ROOT = Path(__file__).parents[2]


def a_config(folder: Path, vocabulary: int) -> Path:
    transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2
    ).save_pretrained(folder)
    return folder / "config.json"


def test_the_probe_belongs_to_the_model_of_the_config(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    config = a_config(tmp_path / "config", VOCABULARY)
    probe = LinearProbe.load(write(config, str(tmp_path / "tokenizer"), tmp_path / "model"))
    loaded = transformers.AutoConfig.from_pretrained(tmp_path / "model")
    assert probe.card.model == identify(str(tmp_path / "model"), loaded)
    assert str(probe.reads[0].site) == "2.input_layernorm" and probe.weight.shape == (1, 16)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "model").chat_template


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(SystemExit, match="vocabulary of 8"):
        write(a_config(tmp_path / "config", 8), str(tmp_path / "tokenizer"), tmp_path / "model")


def test_the_script_can_be_read_by_the_shell():
    bash = shutil.which("bash")
    assert bash is not None
    subprocess.run([bash, "-n", str(ROOT / "benchmarks" / "gpu_vllm.sh")], check=True)
