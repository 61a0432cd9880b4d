"""Grammars over real tokenizers: what a model writes by its own template is what they allow."""

import json
from typing import Any

import pytest

from anydepth.backends.transformers.grammar import GrammarTokens
from anydepth.server.answer.segments import begins_thinking
from anydepth.server.answer.structured import CallForm, Form, Way, grammar_of
from anydepth.templates.call_formats import choose_format
from anydepth.templates.marker_tokens import marker_tokens
from anydepth.templates.template import ChatTemplate
from tests import tokenizers

pytestmark = [pytest.mark.registry, pytest.mark.slow]
pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "guests": {"type": "integer", "minimum": 1, "maximum": 20}},
    "required": ["city", "guests"],
}
BOOKED = '{"city": "Köln 🎉 \\"x\\"", "guests": 12}'
CALLS = {
    "hermes": '<tool_call>\n{"name": "book", "arguments": %s}\n</tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "book", "arguments": %s}]',
}
NAMES = {  # package: what the model is called where its template is a stand-in; thoughts; how it writes calls
    "command_r_plus": ("", None, None),
    "deepseek_v3": ("", None, None),
    "gemma2": ("google/gemma-2-9b-it", None, None),
    "gemma3": ("", None, None),
    "gptoss": ("openai/gpt-oss-120b", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{opener}", None),
    "llama2": ("meta-llama/Llama-2-7b-chat-hf", None, None),
    "llama3_1": ("", None, None),
    "mistral_nemo": ("", None, "mistral"),
    "qwen2_5": ("", None, "hermes"),
    "qwen3": ("", "<think>\nHm.\n</think>\n\n", "hermes"),
}


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_by_the_models_own_template_is_allowed(name):
    hub_id, thoughts, calls = NAMES[name]
    tokenizer: Any = tokenizers.load(name)
    template = ChatTemplate(tokenizer, name=hub_id or name)
    tokens = GrammarTokens(tokenizer, frozenset({tokenizer.eos_token_id}), len(tokenizer))
    prompt = template.prompt("A table in Köln, please.")
    opener = template.words(template.answer_ids(prompt))
    row = choose_format("auto", str(tokenizer.chat_template))
    thinking = begins_thinking(template, prompt)
    way = Way(template.channel, thinking, opener, row, marker_tokens(tokenizer))

    def allows(form: Form, text: str) -> bool:
        """Whether an answer may be this text, as the tokenizer has it, and end there."""
        matcher = tokens.compile(grammar_of(form, way)).matcher.deep_copy()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    assert allows(Form(SCHEMA), opener + BOOKED)
    assert not allows(Form(SCHEMA), opener + BOOKED.replace("12", "21")) and not allows(Form(SCHEMA), opener + "Sure.")
    assert json.loads(BOOKED)["guests"] == 12
    assert (template.channel is None) == (thoughts is None) and (row is None or row.name) == (calls or row is None)
    if thoughts is not None:
        assert allows(Form(SCHEMA), thoughts.format(opener=opener) + BOOKED)
    if calls is not None:
        form = Form(None, [CallForm("weather"), CallForm("book", SCHEMA)])
        assert allows(form, opener + CALLS[calls] % BOOKED) and not allows(form, opener + BOOKED)
