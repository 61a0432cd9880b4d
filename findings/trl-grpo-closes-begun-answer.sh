#!/usr/bin/env bash
# TRL's GRPO trainer closes a prompt's begun answer and opens another one.
#
# Guess: a prompt that ends in an assistant message is a begun answer that the policy continues, as TRL's own
#   `apply_chat_template` renders the very same example, and as Transformers' text-generation pipeline does.
# What happens: the trainer renders every prompt with `add_generation_prompt=True`. The begun answer is ended as a turn,
#   a second assistant turn is opened, and the policy is trained to answer behind it. The reward function is given the
#   prompt's messages, which look the same either way.
# Versions: torch 2.13.0, transformers 5.24.0, trl 1.16.0, datasets 5.2.0; Python 3.11
# Output seen on 2026-11-29:
#   apply_chat_template: u:hi<end>a:Yes
#   what the policy was given: u:hi<end>a:Yes<end>a:
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.24.0 trl==1.16.0 datasets==5.2.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work/run" 2>"$work/log" <<'PYTHON' || { tail -n 20 "$work/log" >&2; exit 1; }
import string
import sys

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, apply_chat_template

vocabulary = {piece: number for number, piece in enumerate([*string.ascii_letters, ":", "<end>", "<pad>"])}
letters = Tokenizer(models.BPE(vocabulary, []))
letters.decoder = decoders.Fuse()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<end>", pad_token="<pad>")
tokenizer.chat_template = (
    "{% for message in messages %}{{ message.role[0] }}:{{ message.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
)
given = []
model.register_forward_pre_hook(lambda module, args, kwargs: given.append(kwargs["input_ids"][0]), with_kwargs=True)
example = {"prompt": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes"}]}
trainer = GRPOTrainer(
    model,
    reward_funcs=lambda completions, **rest: [float(len(each[0]["content"])) for each in completions],
    args=GRPOConfig(
        output_dir=sys.argv[1], num_generations=2, per_device_train_batch_size=2, max_completion_length=4, max_steps=1,
        report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no", logging_strategy="no",
    ),
    train_dataset=Dataset.from_list([example] * 2),
    processing_class=tokenizer,
)
trainer.remove_callback(PrinterCallback)
trainer.train()
rendered = apply_chat_template(example, tokenizer)["prompt"]
seen = tokenizer.decode(given[0])
print(f"apply_chat_template: {rendered}")
print(f"what the policy was given: {seen}")
raise SystemExit(not (rendered.endswith("a:Yes") and seen.endswith("a:Yes<end>a:")))
PYTHON
