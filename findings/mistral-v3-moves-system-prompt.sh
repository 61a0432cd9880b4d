#!/usr/bin/env bash
# Mistral's v2 and v3 prompts put the system message into the last user turn, so that a chat does not extend itself.
#
# Guess: the ids of a chat are the beginning of the ids of the same chat one turn later, so that its KV cache can be
#   used again.
# What happens: the system message is put before the text of the last user message. With each turn it moves on, and the
#   ids differ from the third one on, which is where the first user message begins. In v1 it stays with the first user
#   message, and in v7 it has a place of its own.
# Versions: mistral-common 1.13.1, sentencepiece 0.2.3; Python 3.11
# Output seen on 2026-11-29:
#   v1: 14 of 14 ids in common
#   v2: 2 of 9 ids in common
#   v3: 2 of 9 ids in common
#   v7: 9 of 9 ids in common
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile "mistral-common[sentencepiece]==1.13.1" sentencepiece==0.2.3
"$work/venv/bin/python" - <<'PYTHON'
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

first = [SystemMessage(content="Be brief."), UserMessage(content="One")]
second = [*first, AssistantMessage(content="Two"), UserMessage(content="Three")]


def common(version):
    """Number of ids that both chats begin with, and number of ids of the first."""
    tokenizer = getattr(MistralTokenizer, version)()
    chats = [ChatCompletionRequest(messages=messages) for messages in (first, second)]
    short, long = (tokenizer.encode_chat_completion(chat).tokens for chat in chats)
    same = [one == other for one, other in zip(short, long)]
    return (same + [False]).index(False), len(short)


found = {version: common(version) for version in ("v1", "v2", "v3", "v7")}
for version, (same, length) in found.items():
    print(f"{version}: {same} of {length} ids in common")
extends = {version: same == length for version, (same, length) in found.items()}
raise SystemExit(extends != {"v1": True, "v2": False, "v3": False, "v7": True})
PYTHON
