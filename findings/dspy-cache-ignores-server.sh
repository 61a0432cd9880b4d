#!/usr/bin/env bash
# dspy's cache gives one server's answer for another server.
#
# Guess: the same question to another api_base is another request.
# What happens: the default cache on disk does not look at api_base: the second server is never asked (and an answer
#   that ended with content_filter is cached like any other).
# Versions: dspy 3.4.1; Python 3.11
# Output seen on 2026-11-28:
#   first server: 1 requests, answer ['I am the first server.']
#   second server: 0 requests, answer ['I am the first server.']
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile dspy==3.4.1
DSPY_CACHEDIR="$work/cache" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dspy


def serve(answer):
    """Serve `answer(number)` (one reply, or the chunks of a stream) on 127.0.0.1; returns its address and the requests."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            sent = answer(len(asked))
            if isinstance(sent, list):
                body, kind = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in sent) + "data: [DONE]\n\n", "text/event-stream"
            else:
                body, kind = json.dumps(sent), "application/json"
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/v1", asked


def reply(content):
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "content_filter"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


said = []
for name in ("first server", "second server"):
    address, asked = serve(lambda _, name=name: reply(f"I am the {name}."))
    answer = dspy.LM("openai/m", api_base=address, api_key="none")("Who are you?")
    said.append((answer, len(asked)))
    print(f"{name}: {len(asked)} requests, answer {answer}")
raise SystemExit(0 if said == [(["I am the first server."], 1), (["I am the first server."], 0)] else 1)
PYTHON
