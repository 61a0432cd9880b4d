"""The template layer on real tokenizers: derivation gives the published headers."""

from collections.abc import Mapping, Sequence

import pytest
import transformers
from packaging.version import Version
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from anydepth.errors import ConfigError, PromptError
from anydepth.templates.template import ChatTemplate, published
from tests import tokenizers

pytestmark = pytest.mark.registry

DERIVED = {  # package: header, read token, answer opener
    "llama3_1": ("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "assistant", ""),
    "gemma3": ("<end_of_turn>\n<start_of_turn>model\n", "model", ""),
    "mistral_nemo": ("</s>[/INST]", "[/INST]", ""),
    "qwen2_5": ("<|im_end|>\n<|im_start|>assistant\n", "assistant", ""),
    "qwen3": ("<|im_end|>\n<|im_start|>assistant\n", "assistant", "<think>\n\n</think>\n\n"),
    "deepseek_v3": ("<｜end▁of▁sentence｜><｜Assistant｜>", "<｜Assistant｜>", ""),
}
STAND_IN = {  # tokenizers without a chat template: header, read token, answer opener of the row
    "gemma2": ("google/gemma-2-9b-it", "<end_of_turn>\n<start_of_turn>model\n", "model", ""),
    "llama2": ("meta-llama/Llama-2-7b-chat-hf", "</s><s> [/INST] ", "INST", ""),
    "gptoss": ("openai/gpt-oss-120b", "<|end|><|start|>assistant", "assistant", "<|channel|>final<|message|>"),
}
# DeepSeek-R1-Distill is in no package: its template, cut down to the turn format, and the vocabulary it is made of.
R1_DISTILL = """
{{- bos_token }}{% for m in messages %}
{%- if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}
{%- else %}{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"""

MESSAGES = [
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Rayleigh scattering."},
    {"role": "user", "content": "And red at dusk?"},
]
EVERY = [*DERIVED, *STAND_IN]


def template_of(package: str, **options) -> ChatTemplate:
    name = STAND_IN[package][0] if package in STAND_IN else package
    return ChatTemplate(tokenizers.load(package), name=name, **options)


def r1_distill() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(tokenizers.fetch("qwen3"), local_files_only=True)
    tokenizer.add_tokens(
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"], special_tokens=True
    )
    tokenizer.bos_token = "<｜begin▁of▁sentence｜>"
    tokenizer.chat_template = R1_DISTILL
    return tokenizer


def text_of(template: ChatTemplate, ids: Sequence[int]) -> str:
    return template.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def skip_broken_tokenizer(package: str) -> None:
    if package == "deepseek_v3" and Version(transformers.__version__) < Version("5.20"):
        pytest.skip("this Transformers reads the tokenizer as one that takes `▁` for a space, and loses spaces")


@pytest.mark.parametrize("package", DERIVED)
def test_derived_header(package: str) -> None:
    skip_broken_tokenizer(package)
    template = template_of(package)
    header, read, answer = DERIVED[package]
    assert template.source == "derived"
    assert text_of(template, template.header.ids) == header
    assert template.header.tokens[template.header.read_index] == read
    assert text_of(template, template.header.answer_ids) == answer
    assert template.channels == (("thinking", "answer") if answer else ("answer",))


@pytest.mark.parametrize("package", STAND_IN)
def test_header_of_a_row(package: str) -> None:
    template = template_of(package)
    name, header, read, answer = STAND_IN[package]
    assert template.source == name
    assert text_of(template, template.header.ids) == header
    assert template.header.tokens[template.header.read_index] == read
    assert text_of(template, template.header.answer_ids) == answer


# Rule: header and answer opener together are the published header, letter for letter. What a published probe injects
# is a part of that: it may leave out the end of turn in front and what follows the read token at the end. So the probe
# ids are, token for token, a piece of ours that ends at the token it reads.
@pytest.mark.parametrize(
    ("package", "name", "jinja"),
    [
        ("llama3_1", "meta-llama/Llama-3.1-8B-Instruct", None),
        ("mistral_nemo", "mistralai/Ministral-8B-Instruct-2410", None),
        ("qwen2_5", "Qwen/Qwen2.5-7B-Instruct", None),
        ("r1_distill", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", None),
        ("gemma2", "google/gemma-2-2b-it", "row"),
        ("gemma2", "google/gemma-2-9b-it", "row"),
        ("gemma2", "google/gemma-2-27b-it", "row"),
        ("gptoss", "openai/gpt-oss-120b", "row"),
        ("llama2", "meta-llama/Llama-2-7b-chat-hf", "row"),
    ],
)
def test_derivation_gives_the_published_header(
    package: str, name: str, jinja: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, tokenizer = published(name), r1_distill() if package == "r1_distill" else tokenizers.load(package)
    if jinja == "row":
        monkeypatch.setattr(tokenizer, "chat_template", row.template)
    template = ChatTemplate(tokenizer, name=name)
    assert template.source == ("derived" if row.use == "fallback" else name)
    if package != "llama2":  # its decoder drops the spaces around special tokens
        assert text_of(template, template.header.ids + template.header.answer_ids) == row.header + row.answer
    probe = tuple(tokenizer(row.probe_header, add_special_tokens=False)["input_ids"])
    reading = ChatTemplate(tokenizer, name=name, read_token=row.read_token).header
    assert reading.probe_ids[-len(probe) :] == probe


@pytest.mark.parametrize("package", EVERY)
def test_prompt_is_apply_chat_template(package: str) -> None:
    template = template_of(package)
    if package in DERIVED:
        want = template.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
        assert list(template.prompt(MESSAGES).ids) == want
    bos = template.tokenizer.bos_token_id
    if bos is not None and package != "gptoss":  # its format has none
        assert template.prompt("hi").ids.count(bos) == 1


@pytest.mark.parametrize("package", DERIVED)
def test_turns_by_ids_are_the_conversation_by_text(package: str) -> None:
    """Prompt, answer and header apart have the ids of the whole conversation: nothing merges over their borders."""
    template = template_of(package)
    answered = template.prompt(MESSAGES[:1], prefill="Rayleigh scattering.")
    if template.header.answer_ids:  # Qwen3 writes the empty thoughts only in front of the last answer
        assert answered.ids[answered.start :][: len(template.header.answer_ids)] == template.header.answer_ids
        return
    after = template.tokenizer.apply_chat_template(MESSAGES[:2], add_generation_prompt=True, return_dict=False)
    if package == "mistral_nemo":  # no generation prompt after an answer
        after = [*after, template.header.ids[-1]]
    assert [*answered.ids, *template.header.ids] == after


@pytest.mark.parametrize("package", EVERY)
@pytest.mark.parametrize("prefill", ["Sure, here", "\n\nSure", " Sure", "Sure \n ", "もちろん", "1."])
def test_prefill_leaves_the_prompt_alone_and_the_text_whole(package: str, prefill: str) -> None:
    skip_broken_tokenizer(package)
    template = template_of(package)
    bare, given = template.prompt(MESSAGES), template.prompt(MESSAGES, prefill=prefill)
    assert given.ids[: given.start] == bare.ids
    text = text_of(template, given.ids)
    assert text.endswith(prefill)
    if package in DERIVED and prefill == prefill.strip():
        conversation: list[Mapping[str, str]] = [*MESSAGES, {"role": "assistant", "content": prefill}]
        want = template.tokenizer.apply_chat_template(conversation, continue_final_message=True, tokenize=False)
        assert text == want


@pytest.mark.parametrize("package", EVERY)
def test_depth_zero_is_in_the_prompt(package: str) -> None:
    template = template_of(package)
    for prompt in (template.prompt("hi"), template.prompt("hi", prefill="Sure")):
        index = template.start_index(prompt, template.header.read_index)
        assert index is not None
        assert prompt.ids[index] == template.header.ids[template.header.read_index]
        assert prompt.start - len(template.header.ids) <= index < prompt.start


def test_published_read_token_in_the_answer_channel() -> None:
    header = template_of("gptoss", read_token="<|message|>").header
    assert header.tokens == ("<|end|>", "<|start|>", "assistant", "<|channel|>", "final", "<|message|>")
    assert header.read_index == 5
    assert header.answer_ids == ()


def test_thinking_can_be_switched_off() -> None:
    template = template_of("qwen3", template_kwargs={"enable_thinking": False})
    assert text_of(template, template.header.ids).endswith("assistant\n<think>\n\n</think>\n\n")
    assert template.header.answer_ids == ()
    assert template.header.tokens[template.header.read_index] == "assistant"


def test_thoughts_as_prefill_stay_in_their_channel() -> None:
    template = template_of("qwen3")
    prompt = template.prompt("hi", prefill="<think>\nThe user")
    assert text_of(template, prompt.ids[prompt.start :]) == "<think>\nThe user"


def test_roles_that_a_template_does_not_know() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert "Be brief." in text_of(template_of("gemma3"), template_of("gemma3").prompt([system, *MESSAGES]).ids)
    with pytest.raises(PromptError, match="No place for the role system"):
        template_of("gemma2").prompt([system, *MESSAGES])
    with pytest.raises(PromptError, match="must alternate"):
        template_of("mistral_nemo").prompt([*MESSAGES, MESSAGES[-1]])
    with pytest.raises(PromptError, match="drops messages of role 'human'"):
        template_of("deepseek_v3").prompt([{"role": "human", "content": "hi"}])


def test_read_token_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'model'.*'<\|start_header_id\|>', 'assistant'"):
        template_of("llama3_1", read_token="model")
