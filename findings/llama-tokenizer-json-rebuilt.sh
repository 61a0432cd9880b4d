#!/usr/bin/env bash
# The class name in tokenizer_config.json changes the ids of one tokenizer.json.
#
# Guess: AutoTokenizer encodes as the tokenizer.json beside it does, whatever fast class is named.
# What happens: for a Llama class the normaliser and the pre-tokeniser are made anew and those in tokenizer.json are
#   ignored, so that a `▁` is put before the text.
# Versions: torch 2.13.0, transformers 5.23.0; Python 3.11
# Output seen on 2026-11-28:
#   tokenizer.json itself: [4, 7]
#   PreTrainedTokenizerFast: [4, 7]
#   LlamaTokenizerFast: [6, 7]
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer

vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "▁b": 7}
saved = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "b")], unk_token="<unk>", fuse_unk=True))
saved.normalizer = normalizers.Replace(" ", "▁")  # no "▁" is put before the text
seen = {"tokenizer.json itself": saved.encode("a b").ids}
with tempfile.TemporaryDirectory() as folder:
    saved.save(f"{folder}/tokenizer.json")
    for name in ("PreTrainedTokenizerFast", "LlamaTokenizerFast"):
        settings = {"tokenizer_class": name, "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        seen[name] = loaded.encode("a b", add_special_tokens=False)
for name, ids in seen.items():
    print(f"{name}: {ids}")
raise SystemExit(0 if list(seen.values()) == [[4, 7], [4, 7], [6, 7]] else 1)
PYTHON
