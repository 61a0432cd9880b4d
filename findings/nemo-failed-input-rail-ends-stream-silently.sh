#!/usr/bin/env bash
# A stream of NeMo Guardrails whose input rail fails has no chunk at all, and no error.
#
# Guess: where generate() answers "an internal error has occurred", stream_async() gives that text, or an error frame as
#   for a failed output rail.
# What happens: the stream ends at once, empty and without an error, as an answer of no words would. The log has the error.
# Versions: nemoguardrails 0.24.1; Python 3.11
# Output seen on 2026-11-29:
#   generate:     I'm sorry, an internal error has occurred.
#   stream_async: [] (calls of the model: 0)
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile nemoguardrails==0.24.1
"$work/venv/bin/python" - 2> /dev/null <<'PYTHON'
import asyncio

from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.testing import FakeLLMModel

YAML = """
colang_version: "1.0"
models: []
rails:
  input:
    flows: [ask a service]
"""
COLANG = """
define subflow ask a service
  $verdict = execute ask_a_service
  if $verdict.is_blocked
    bot refuse to respond
    stop

define bot refuse to respond
  "No."
"""
MESSAGES = [{"role": "user", "content": "Hello"}]


async def ask_a_service(**_):
    raise ConnectionError("the service is down")


def rails():
    model = FakeLLMModel(responses=["Hello to you"])
    made = LLMRails(RailsConfig.from_content(COLANG, YAML), llm=model)
    made.register_action(ask_a_service)
    return made, model


async def stream():
    made, model = rails()
    return [chunk async for chunk in made.stream_async(messages=MESSAGES)], model.inference_count


said = rails()[0].generate(messages=MESSAGES)["content"]
chunks, calls = asyncio.run(stream())
print("generate:    ", said)
print("stream_async:", chunks, f"(calls of the model: {calls})")
raise SystemExit(not ("internal error" in said and chunks == [] and calls == 0))
PYTHON
