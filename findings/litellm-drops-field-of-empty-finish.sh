#!/usr/bin/env bash
# LiteLLM drops a server's own field on a finish chunk with an empty delta.
#
# Guess: a field of its own that a server puts beside finish_reason reaches the caller, as one beside a delta with
#   text does.
# What happens: the finish chunk is made anew where its delta is empty, and the field is lost; with any text in the
#   delta it is kept.
# Versions: litellm 1.110.2; Python 3.11
# Output seen on 2026-11-28:
#   finish chunk with the delta {}: its own field 'report' reaches the caller: False
#   finish chunk with the delta {'content': '.'}: its own field 'report' reaches the caller: True
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile litellm==1.110.2
LITELLM_LOCAL_MODEL_COST_MAP=True HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import litellm


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


def chunk(delta, finish_reason=None, **more):
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **more}
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


kept = {}
for last in ({}, {"content": "."}):
    chunks = [chunk({"role": "assistant", "content": "a b"}), chunk(last, "content_filter", report={"depth": 7})]
    address, _ = serve(lambda _, chunks=chunks: chunks)
    stream = litellm.completion(
        model="openai/m", api_base=address, api_key="none", stream=True, messages=[{"role": "user", "content": "Hi"}]
    )
    kept[str(last)] = any("report" in part.model_dump()["choices"][0] for part in stream)
for last, seen in kept.items():
    print(f"finish chunk with the delta {last}: its own field 'report' reaches the caller: {seen}")
raise SystemExit(0 if list(kept.values()) == [False, True] else 1)
PYTHON
