#!/usr/bin/env bash
# With context_size 0, or one that is not below chunk_size, NeMo Guardrails runs output rails for every token of a stream.
#
# Guess: chunk_size is how many tokens the output rails are applied to at a time, and context_size how many before them
#   they see as well; 0 has them see the chunk alone, at the least cost.
# What happens: a chunk is due as soon as the buffer holds chunk_size tokens, and after each chunk the buffer is cut to
#   its last context_size: buffer[-context_size:], which with 0 is all of it. So from the first chunk on each token is a
#   chunk of its own, and with 0 the rails see the whole answer so far each time.
# Versions: nemoguardrails 0.24.1; Python 3.11
# Output seen on 2026-11-29 (90 tokens, chunk_size 20):
#   context_size  0: 72 chunks of 20 1 1 1 1 1 1 1 ... tokens, the last one behind 90 tokens
#   context_size 10: 9 chunks of 20 10 10 10 10 10 10 10 ... tokens, the last one behind 10 tokens
#   context_size 20: 72 chunks of 20 1 1 1 1 1 1 1 ... tokens, the last one behind 20 tokens
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile nemoguardrails==0.24.1
"$work/venv/bin/python" - <<'PYTHON'
import asyncio

from nemoguardrails.rails.llm.buffer import RollingBuffer


async def tokens():
    for number in range(90):
        yield f"t{number} "


async def chunks(context):
    buffer = RollingBuffer(buffer_context_size=context, buffer_chunk_size=20)
    return [(len(batch.user_output_chunks), len(batch.processing_context)) async for batch in buffer(tokens())]


found = {context: asyncio.run(chunks(context)) for context in (0, 10, 20)}
for context, each in found.items():
    new = [size for size, _ in each]
    behind = each[-1][1] - new[-1]
    print(f"context_size {context:2}: {len(new)} chunks of", *new[:8], f"... tokens, the last one behind {behind} tokens")
raise SystemExit(not (len(found[0]) == len(found[20]) > 70 and len(found[10]) < 10))
PYTHON
