#!/usr/bin/env bash
# A stream that ends in the middle is no error for the clients of OpenAI and Anthropic.
#
# Guess: a stream that never says how it ended (no finish_reason and no [DONE]; no stop_reason and no message_stop) raises.
# What happens: where the HTTP body itself ends in order, as behind a proxy that gave up, both iterators just end. What came
#   looks like a whole answer; only the missing finish_reason or stop_reason tells.
# Versions: openai 3.54.0, anthropic 2.14.0; Python 3.11
# Output seen on 2026-11-29:
#   openai: 'one two ', finish_reason None, no error
#   anthropic: 'one two ', stop_reason None, no error
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile openai==3.54.0 anthropic==2.14.0
"$work/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anthropic
import openai

PIECES = ("one ", "two ")
USAGE = {"input_tokens": 1, "output_tokens": 1}
MESSAGE = {"id": "x", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": USAGE}
BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}


def openai_events():
    for piece in PIECES:
        choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
        yield "", {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def anthropic_events():
    yield "message_start", {"type": "message_start", "message": {**MESSAGE, "stop_reason": None, "stop_sequence": None}}
    yield "content_block_start", BLOCK
    for piece in PIECES:
        delta = {"type": "text_delta", "text": piece}
        yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        events = anthropic_events() if self.path.endswith("messages") else openai_events()
        named = ((f"event: {name}\n" if name else "", json.dumps(content)) for name, content in events)
        body = "".join(f"{name}data: {content}\n\n" for name, content in named).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"
asked = {"model": "m", "messages": [{"role": "user", "content": "Count."}], "stream": True}
found = {}

text, reason, error = "", None, "no error"
try:
    for chunk in openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0).chat.completions.create(**asked):
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
except Exception as raised:
    error = type(raised).__name__
found["openai"] = (text, reason, error)
print(f"openai: {text!r}, finish_reason {reason}, {error}")

text, reason, error = "", None, "no error"
try:
    client = anthropic.Anthropic(base_url=address, api_key="none", max_retries=0)
    for event in client.messages.create(max_tokens=9, **asked):
        if event.type == "content_block_delta":
            text += event.delta.text
        elif event.type == "message_delta":
            reason = event.delta.stop_reason
except Exception as raised:
    error = type(raised).__name__
found["anthropic"] = (text, reason, error)
print(f"anthropic: {text!r}, stop_reason {reason}, {error}")

raise SystemExit(any(each != ("one two ", None, "no error") for each in found.values()))
PYTHON
