#!/usr/bin/env bash
# In a grammar of llguidance, an alternative that begins with a literal shuts out a JSON alternative beside it.
#
# Guess: `start: a | b` allows every text that `a` alone or `b` alone allows.
# What happens: once the text has begun as the literal does, the JSON alternative is gone. With `%json` on both sides it is
#   there.
# Versions: llguidance 1.9.1; Python 3.11
# Output seen on 2026-11-29:
#   the JSON alone: True; beside a literal: False; beside other JSON: True
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile llguidance==1.9.1
"$work/venv/bin/python" - <<'PYTHON'
from llguidance import LLMatcher, LLTokenizer

ANSWER = b'{"city":"Ulm"}'
JSON = '%json {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": false}'
OTHER = '%json {"type": "object", "properties": {"name": {"const": "f"}}, "required": ["name"], "additionalProperties": false}'
LITERAL = r'"{\"name\": \"f\"}"'

tokens = LLTokenizer("byte")


def allows(grammar):
    """Whether the grammar allows ANSWER."""
    matcher = LLMatcher(tokens, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = tokens.tokenize_bytes(ANSWER)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


alone = allows(f"start: {JSON}")
literal = allows(f"start: a | b\na: {LITERAL}\nb: {JSON}")
other = allows(f"start: a | b\na: {OTHER}\nb: {JSON}")
print(f"the JSON alone: {alone}; beside a literal: {literal}; beside other JSON: {other}")
raise SystemExit(0 if alone and not literal and other else 1)
PYTHON
