"""What is loaded is checked: tiny models are saved, a file of theirs is broken, and the error names it."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from anydepth.backends.transformers import cpu, load, passes
from anydepth.backends.transformers.blocks import find_blocks
from anydepth.backends.transformers.checkpoint_files import file_fault, folder_of
from anydepth.backends.transformers.cpu.operands import SwappedLinear
from anydepth.backends.transformers.opening import auto_class, open_adapter, open_model, open_tokenizer
from anydepth.cli import app
from anydepth.errors import ModelError
from tests import tiny
from tests.contract.contract import TOLERANCE, largest_difference, prompt_of, run, watcher_for

Change = Callable[[Path], Any]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny.tiny_model("Llama").save_pretrained(folder)
    tiny.tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def cut(name: str, length: int) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def gone(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def weights(changed: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], name: str = WEIGHTS) -> Change:
    def change(folder: Path) -> None:
        save_file(changed(load_file(folder / name)), folder / name, {"format": "pt"})

    return change


def sharded(index: str) -> Change:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(index)

    return change


def pickled(content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return change


def a_folder_in_place_of_the_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def a_link_that_leads_nowhere(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "nowhere")


SHARDS = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})

# -- files that cannot be used -----------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[Change, str]] = {
    "lfs pointer": (text(WEIGHTS, POINTER), r"model\.safetensors is a git-lfs pointer.* `git lfs pull`"),
    "lfs pointer of a tokenizer": (text("tokenizer.json", POINTER), r"tokenizer\.json is a git-lfs pointer"),
    "cut weights": (cut(WEIGHTS, 9000), r"model\.safetensors was cut short.*incomplete metadata.*; fetch it again"),
    "cut header": (cut(WEIGHTS, 20), r"model\.safetensors was cut short.*header"),
    "empty weights": (cut(WEIGHTS, 0), r"model\.safetensors is empty"),
    "a folder for weights": (a_folder_in_place_of_the_weights, r"model\.safetensors cannot be read \(Is a directory\)"),
    "no weights": (gone(WEIGHTS), r"no file named model\.safetensors"),
    "a shard that is not there": (
        sharded(SHARDS),
        r"index\.json names model-00002-of-00002\.safetensors, which is not",
    ),
    "an index without a map": (sharded("{}"), r"index\.json has no weight_map"),
    "a broken index": (sharded("{"), r"index\.json is not valid JSON"),
    "lfs pointer of a pickle": (pickled(POINTER.encode()), r"pytorch_model\.bin is a git-lfs pointer"),
    "no pickle": (pickled(b"nothing of the kind"), r"pytorch_model\.bin is no file of weights"),
    "broken config": (text("config.json", "{ not json"), r"config\.json is not valid JSON \(.*line 1"),
    "a config that is a list": (text("config.json", "[]"), r"config\.json holds a list, not an object"),
    "a link that leads nowhere": (a_link_that_leads_nowhere, r"config\.json is a link to a file that is not there"),
    "no config": (gone("config.json"), r"Unrecognized model.*config\.json"),
    "dtype with a module": (config(dtype="torch.bfloat16"), r"config\.json says dtype is 'torch\.bfloat16'; write"),
    "old dtype with a module": (
        config(dtype=None, torch_dtype="torch.bfloat16"),
        r"says torch_dtype is 'torch\.bfloat16'",
    ),
    "a wrong type": (config(hidden_size="x"), r"hidden_size.*expected int, got str"),
    "heads that do not divide": (config(num_attention_heads=5), r"not a multiple of the number of attention heads"),
    "an unknown rope": (config(rope_parameters={"rope_type": "nonesuch"}), r"KeyError: 'nonesuch' in transformers\."),
    "an unknown model": (config(model_type="nonesuch"), r"model type `nonesuch`.*pip install --upgrade transformers"),
    "8-bit": (config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}), "bitsandbytes"),
    "GPTQ": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"optimum|gptqmodel.*install what it needs",
    ),
    "AWQ": (config(quantization_config={"quant_method": "awq", "bits": 4}), r"gptqmodel.*install what it needs"),
    "broken tokenizer": (text("tokenizer.json", "{ not json"), r"tokenizer\.json is not valid JSON"),
    "no such tokenizer": (text("tokenizer.json", "{}"), r"tokenizer\.json holds no tokenizer.*Model missing"),
    "broken tokenizer config": (text("tokenizer_config.json", "{"), r"tokenizer_config\.json is not valid JSON"),
    "no tokenizer": (gone("tokenizer.json", "tokenizer_config.json"), r"there is no tokenizer in .*; copy"),
    "broken generation config": (text("generation_config.json", "{"), r"generation_config\.json is not valid JSON"),
    "an impossible generation config": (text("generation_config.json", '{"max_new_tokens": -3}'), "max_new_tokens"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_that_cannot_be_used_is_named(folder: Path, fault: str) -> None:
    change, said = BROKEN[fault]
    change(folder)
    with pytest.raises(ModelError, match=said) as caught:
        load(folder)
    assert str(caught.value).startswith(f"model '{folder}' cannot be loaded: ")


def test_a_dtype_of_a_part_of_the_model_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"dtype": "auto", "text_config": {"torch_dtype": "bf17"}}')
    assert "says torch_dtype is 'bf17'" in (file_fault(file) or "")
    file.write_text('{"dtype": "bfloat16", "text_config": {"dtype": "float8_e4m3fn"}}')
    assert file_fault(file) is None


def test_the_librarys_own_error_is_kept_as_the_cause(folder: Path) -> None:
    cut(WEIGHTS, 20)(folder)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert type(caught.value.__cause__).__name__ == "SafetensorError"


def scanned(folder: Path, place: Path) -> Result:
    records = place / "records.jsonl"
    records.write_text('{"prompt": "w1", "response": "w2"}\n')
    return CliRunner().invoke(app, ["scan", str(folder), str(records), "-o", str(place / "out.jsonl")])


@pytest.mark.parametrize("fault", ["lfs pointer", "old dtype with a module", "8-bit", "no tokenizer"])
def test_the_command_line_says_so_without_a_traceback(folder: Path, fault: str, tmp_path: Path) -> None:
    BROKEN[fault][0](folder)
    result = scanned(folder, tmp_path)
    assert result.exit_code == 2, result.output
    assert f"error: model '{folder}' cannot be loaded" in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize("name", ["../nonesuch/x", "/nonesuch", "a/b/c"])
def test_a_folder_that_is_not_there_is_told_from_a_hub_id(name: str) -> None:
    with pytest.raises(ModelError, match=f"there is no folder '{name}'"):
        load(name)


@pytest.mark.parametrize("name", ["x" * 300, "null\0byte", "a b"])
def test_what_can_be_neither_a_folder_nor_a_hub_id_is_an_error(name: str) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(name)


@pytest.fixture
def cached(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `org/tiny` in a cache of the hub."""
    place = tmp_path / "hub" / "models--org--tiny"
    commit = "0123456789" * 4
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return shutil.copytree(saved, place / "snapshots" / commit)


def test_a_model_of_the_hub_is_looked_at_in_the_cache(cached: Path) -> None:
    assert folder_of("org/tiny") == cached and folder_of("org/other") is None
    assert load("org/tiny").identity.name == "org/tiny"
    BROKEN["lfs pointer of a tokenizer"][0](cached)
    with pytest.raises(ModelError, match=r"model 'org/tiny' cannot be loaded: /.*tokenizer\.json is a git-lfs pointer"):
        load("org/tiny")
    shutil.copy(cached / "config.json", cached / "tokenizer.json")
    with pytest.raises(ModelError, match=r"tokenizer\.json holds no tokenizer"):
        load("org/tiny")


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A file that may not be read, by a user who is not root."""
    file = tmp_path / "config.json"
    file.write_text("{}")
    file.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield file
    finally:
        if root:
            os.seteuid(0)


def test_a_file_without_permission_is_named(closed: Path) -> None:
    assert file_fault(closed) == f"{closed} cannot be read (Permission denied); make it a file that this user may read"


def failing(error: Exception) -> Any:
    class Library:
        @staticmethod
        def from_pretrained(place: Any, **arguments: Any) -> Any:
            raise error

    return Library


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room on the disk"),
        (MemoryError(), "not enough memory"),
        (torch.OutOfMemoryError("tried to allocate 9 GiB"), r"not enough memory \(tried to allocate 9 GiB\)"),
        (ModuleNotFoundError("No module named 'x'"), "No module named 'x'; install what it needs"),
        (Exception("anything at all"), "anything at all; give a hub id"),
        (ConnectionError("no network"), "no network"),
        (KeyError("key"), "KeyError: 'key' in .*from_pretrained"),
    ],
)
def test_whatever_a_library_raises_is_the_users_files(folder: Path, error: Exception, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        open_model(failing(error), folder)
    assert caught.value.__cause__ is error


def test_an_error_of_this_package_is_not_taken_for_one_of_the_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: Any) -> Any:
        raise TypeError("ours")

    monkeypatch.setattr(passes, "identify", broken)
    with pytest.raises(TypeError, match="ours"):
        load(folder)


def test_an_interrupt_goes_through(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        open_model(failing(KeyboardInterrupt()), folder)  # pyright: ignore


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta"])
def test_a_device_that_is_not_there_is_an_error(folder: Path, device: str) -> None:
    with pytest.raises(ModelError, match=f"device is '{device}'.*; give one that this machine has"):
        load(folder, device=device)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    torch.manual_seed(0)
    small = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**tiny._SMALL, "vocab_size": 4}))
    small.save_pretrained(folder)
    with pytest.raises(ModelError, match="only 4 embeddings; give the tokenizer that belongs to the model"):
        load(folder)


# -- weights that do not come from the files ---------------------------------------------------------------------------


def without(part: str) -> Change:
    return weights(lambda held: {name: value for name, value in held.items() if part not in name})


def also(**more: torch.Tensor) -> Change:
    return weights(lambda held: held | {name.replace("__", "."): value for name, value in more.items()})


UNLIKE: dict[str, tuple[Change, str]] = {
    "a block without its MLP": (
        without("layers.2.mlp"),
        r"lack weights of the model \(3\).* random values: model\.layers\.2\.mlp\.down_proj\.weight, .*; fetch the",
    ),
    "one norm less": (without("model.norm"), r"lack weights of the model \(1\).*: model\.norm\.weight; fetch"),
    "no head": (without("lm_head"), r"lack .*: lm_head\.weight"),
    "no head of an untied model": (without("embed_tokens"), r"lack .*: model\.embed_tokens\.weight"),
    "more blocks in the config": (config(num_hidden_layers=12), r"\(72\).*: model\.layers\.4\..* and 69 more"),
    "fewer blocks in the config": (
        config(num_hidden_layers=2),
        r"\(18\) that config\.json leaves no place for.*layers\.2",
    ),
    "a head of another shape": (
        also(lm_head__weight=torch.zeros(100, 32)),
        r"lm_head\.weight is \[100, 32\], the model's is \[256, 32\]",
    ),
    "another width of the MLP": (config(intermediate_size=64), r"\(12\) in another shape.* and 9 more"),
    "a bias that the config denies": (
        also(model__layers__0__self_attn__q_proj__bias=torch.ones(32)),
        r"no place for.*: model\.layers\.0\.self_attn\.q_proj\.bias;",
    ),
    "scales without a quantization config": (
        also(model__layers__0__mlp__up_proj__weight_scale_inv=torch.ones(1, 1)),
        r"no place for.*up_proj\.weight_scale_inv",
    ),
}


@pytest.mark.parametrize("fault", UNLIKE)
def test_a_model_that_is_not_wholly_the_files_is_refused(folder: Path, fault: str) -> None:
    change, said = UNLIKE[fault]
    change(folder)
    with pytest.raises(ModelError, match=said):
        load(folder)


def test_passing_shapes_over_does_not_pass_random_weights(folder: Path) -> None:
    UNLIKE["a head of another shape"][0](folder)
    with pytest.raises(ModelError, match="another shape"):
        load(folder, ignore_mismatched_sizes=True)


def test_scan_does_not_run_on_random_weights(folder: Path, tmp_path: Path) -> None:
    UNLIKE["a block without its MLP"][0](folder)
    result = scanned(folder, tmp_path)
    assert result.exit_code == 2 and "random values" in " ".join(result.stderr.split()) and not result.stdout


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_what_a_family_saves_is_whole(family: str, dtype: str, tmp_path: Path) -> None:
    tiny.tiny_model(family).save_pretrained(tmp_path)
    assert open_model(transformers.AutoModelForCausalLM, tmp_path, dtype=dtype).num_parameters() > 0


def test_a_tied_head_is_in_no_file_and_not_missed(folder: Path) -> None:
    config(tie_word_embeddings=True)(folder)
    without("lm_head")(folder)
    model = load(folder).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tied_head_may_be_in_the_files(folder: Path) -> None:
    config(tie_word_embeddings=True)(folder)
    weights(lambda held: held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()})(folder)
    assert load(folder).identity.num_layers == 4


def test_a_quantised_model_is_whole(folder: Path) -> None:
    pytest.importorskip("optimum.quanto")
    backend = load(folder, quantization_config=transformers.QuantoConfig(weights="int8"))
    assert backend.identity.fingerprint == load(folder).identity.fingerprint


def test_parts_that_the_model_has_not_are_left_out(folder: Path) -> None:
    """A head for another task, and a block that predicts further tokens: of its names some are those of a block."""
    further = {f"model.layers.4.{name}": torch.zeros(32) for name in ("eh_proj.weight", "input_layernorm.weight")}
    weights(lambda held: held | {"v_head.summary.weight": torch.zeros(1, 32)} | further)(folder)
    assert load(folder).identity.num_layers == 4


# -- adapters ----------------------------------------------------------------------------------------------------------


def adapter(place: Path, model: Any | None = None, kind: peft.PeftConfig | None = None) -> Path:
    kind = kind or peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    peft.get_peft_model(model or tiny.tiny_model("Llama"), kind).save_pretrained(str(place))
    return place


def llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**tiny._SMALL, **changes}))


ADAPTER_WEIGHTS = "adapter_model.safetensors"
BROKEN_ADAPTERS: dict[str, tuple[Change, str]] = {
    "lacks a block": (
        weights(lambda held: {n: v for n, v in held.items() if "layers.1" not in n}, ADAPTER_WEIGHTS),
        r"lack weights \(4\).*layers\.1\.",
    ),
    "lfs pointer": (text(ADAPTER_WEIGHTS, POINTER), "git-lfs pointer"),
    "cut": (cut(ADAPTER_WEIGHTS, 500), "cut short"),
    "no weights": (gone(ADAPTER_WEIGHTS), "there are no weights of an adapter in"),
    "no config": (gone("adapter_config.json"), r"adapter_config\.json"),
    "broken config": (text("adapter_config.json", "{"), r"adapter_config\.json is not valid JSON"),
    "empty config": (text("adapter_config.json", "{}"), "peft_type"),
    "unknown kind": (text("adapter_config.json", '{"peft_type": "NOPE"}'), "NOPE"),
}


@pytest.mark.parametrize("fault", BROKEN_ADAPTERS)
def test_a_broken_adapter_is_refused(saved: Path, tmp_path: Path, fault: str) -> None:
    change, said = BROKEN_ADAPTERS[fault]
    place = adapter(tmp_path / "adapter")
    change(place)
    with pytest.raises(ModelError, match=said) as caught:
        load(saved, adapter=place)
    assert str(caught.value).startswith(f"adapter '{place}' cannot be loaded: ")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"hidden_size": 64}, "size mismatch.*; give the adapter that was trained on this model"),
        ({"num_hidden_layers": 6}, r"has weights \(8\) that have no place in this model: .*layers\.4\."),
        ({"num_hidden_layers": 2}, r"lack weights \(8\).*layers\.2\."),
    ],
)
def test_an_adapter_of_another_model_is_refused(saved: Path, tmp_path: Path, other: dict[str, int], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load(saved, adapter=adapter(tmp_path / "adapter", llama(**other)))


def test_an_adapter_of_other_layers_is_refused(saved: Path, tmp_path: Path) -> None:
    kind = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["in_proj"])
    with pytest.raises(ModelError, match=r"in_proj.* not found in the base model"):
        load(saved, adapter=adapter(tmp_path / "adapter", tiny.tiny_model("Mamba-2"), kind))


def test_an_adapter_that_would_be_left_out_is_refused(saved: Path, tmp_path: Path) -> None:
    """The guard runs the model inside PEFT's wrapper, and the wrapper is what puts such tokens in."""
    kind = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ModelError, match="PROMPT_TUNING puts learnt tokens before the prompt"):
        load(saved, adapter=adapter(tmp_path / "adapter", kind=kind))


@pytest.mark.parametrize(
    "kind",
    [
        peft.LoraConfig(r=4, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM"),
        peft.LoraConfig(r=4, target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM"),
        peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[1, 2], task_type="CAUSAL_LM"),
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=["dora", "biases", "saved head", "tokens", "ia3"],
)
def test_adapters_of_other_kinds_are_whole(saved: Path, tmp_path: Path, kind: peft.PeftConfig) -> None:
    backend = load(saved, adapter=adapter(tmp_path / "adapter", kind=kind))
    assert backend.identity.fingerprint


def test_an_adapter_is_put_on_layers_that_were_exchanged(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "faster_swapped", lambda: True)
    backend = load(saved, adapter=adapter(tmp_path / "adapter"), dtype="fast")
    layer = backend.model.model.layers[0].self_attn.q_proj
    assert type(layer.base_layer) is SwappedLinear and "default" in layer.lora_A


def test_a_refused_adapter_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = tiny.tiny_model("Llama")
    names = {name for name, _ in model.named_parameters()}
    place = adapter(tmp_path / "adapter", llama(num_hidden_layers=6))
    with pytest.raises(ModelError, match="no place"):
        open_adapter(model, place)
    assert {name for name, _ in model.named_parameters()} == names


def rebased(place: Path, base: Path | None) -> Path:
    file = place / "adapter_config.json"
    held = json.loads(file.read_text()) | {"base_model_name_or_path": None if base is None else str(base)}
    file.write_text(json.dumps(held))
    tiny.tiny_tokenizer().save_pretrained(place)
    return place


def test_an_adapter_in_the_models_place_is_its_base_model_with_the_adapter_on(folder: Path, tmp_path: Path) -> None:
    place = rebased(adapter(tmp_path / "adapter"), folder)
    assert load(place, base_weights=True).reads_base_weights
    assert load(place).identity == load(folder).identity
    without("layers.2.mlp")(folder)
    with pytest.raises(ModelError, match="random values"):
        load(place)


def test_an_adapter_in_the_models_place_needs_a_base_and_no_second_adapter(saved: Path, tmp_path: Path) -> None:
    place = rebased(adapter(tmp_path / "adapter"), saved)
    with pytest.raises(ModelError, match="is an adapter itself"):
        load(place, adapter=place)
    with pytest.raises(ModelError, match="names no base model"):
        load(rebased(place, None))


def test_a_model_with_an_adapter_in_its_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    """The library would load both, and tell of the adapter's weights only."""
    shutil.copytree(adapter(tmp_path / "adapter"), folder, dirs_exist_ok=True)
    with pytest.raises(ModelError, match="holds a model and an adapter"):
        load(folder)


def test_a_tokenizer_alone_is_opened(saved: Path) -> None:
    assert open_tokenizer(saved).chat_template == tiny.CHATML


def llava() -> Any:
    """A model of text and images, both of whose towers have four blocks."""
    vision = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 48}
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **tiny._SMALL},
        vision_config={"model_type": "clip_vision_model", **vision, "image_size": 28, "patch_size": 14},
        image_token_id=9,
    )
    torch.manual_seed(0)
    return transformers.LlavaForConditionalGeneration(config).float().eval()


def test_a_model_of_text_and_images_is_loaded_with_the_template_of_its_processor(tmp_path: Path) -> None:
    model = llava()
    model.save_pretrained(tmp_path)
    tokenizer = tiny.tiny_tokenizer()
    template, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    backend = load(tmp_path)
    assert type(backend.model) is transformers.LlavaForConditionalGeneration
    assert backend.identity.model_type == "llama" and len(find_blocks(backend.model)) == 4
    assert find_blocks(backend.model) is backend.model.model.language_model.layers
    prompt, watcher = prompt_of(backend), watcher_for(backend)
    (plain,) = backend.unguarded([prompt], max_new_tokens=20, do_sample=False)
    released, _ = run(backend, [prompt], watcher, do_sample=False)
    assert released[0][:20] == plain
    assert largest_difference(backend, prompt, released[0], watcher) < TOLERANCE


@pytest.mark.parametrize(
    ("made", "auto"),
    [
        (lambda: transformers.LlamaConfig(), transformers.AutoModelForCausalLM),
        (lambda: transformers.Gemma3Config(), transformers.AutoModelForCausalLM),
        (lambda: transformers.LlavaConfig(), transformers.AutoModelForImageTextToText),
        (lambda: transformers.ViTConfig(), transformers.AutoModelForCausalLM),  # which says what it takes
    ],
)
def test_the_class_that_loads_a_model_is_chosen_by_its_configuration(tmp_path: Path, made: Any, auto: Any) -> None:
    made().save_pretrained(tmp_path)
    assert auto_class(tmp_path) is auto
