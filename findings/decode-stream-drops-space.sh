#!/usr/bin/env bash
# A `DecodeStream` that is begun inside of a text drops a space.
#
# Guess: an answer decoded by two streams, one after the other, has the text that one stream gives.
# What happens: each stream strips the space of its first word; only `ids=` (the tokens before) keeps it.
# Versions: tokenizers 0.23.3; Python 3.11
# Output seen on 2026-11-28:
#   one stream: 'one two three four'; a new stream in the middle: 'one twothree four'; the same, told the first ids: 'one two three four'
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile tokenizers==0.23.3
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream

vocabulary = {"<unk>": 0, "▁one": 1, "▁two": 2, "▁three": 3, "▁four": 4}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
tokenizer.decoder = decoders.Metaspace()  # as SentencePiece models have it
ids = [1, 2, 3, 4]


def text(stream, part):
    return "".join(stream.step(tokenizer, token) or "" for token in part)


one = text(DecodeStream(skip_special_tokens=True), ids)
two = "".join(text(DecodeStream(skip_special_tokens=True), part) for part in (ids[:2], ids[2:]))
told = text(DecodeStream(skip_special_tokens=True), ids[:2]) + text(DecodeStream(ids=ids[:2]), ids[2:])
print(f"one stream: {one!r}; a new stream in the middle: {two!r}; the same, told the first ids: {told!r}")
raise SystemExit(0 if (one, two, told) == ("one two three four", "one twothree four", "one two three four") else 1)
PYTHON
