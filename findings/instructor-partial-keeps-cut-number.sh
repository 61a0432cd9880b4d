#!/usr/bin/env bash
# instructor's `create_partial` ends without an error on a cut answer.
#
# Guess: a stream that ends with content_filter inside of the JSON raises an error at its end.
# What happens: it ends as if it were whole; the last object holds a number that was cut.
# Versions: instructor 1.17.0, openai 3.3.0; Python 3.11
# Output seen on 2026-11-28:
#   ended without an error after 1 request with [Booking(guests=1)]
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile instructor==1.17.0 openai==3.3.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import instructor
import openai
from pydantic import BaseModel


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


class Booking(BaseModel):
    guests: int


address, asked = serve(lambda _: [chunk({"role": "assistant", "content": '{"guests": 1'}), chunk({}, "content_filter")])
client = instructor.from_openai(openai.OpenAI(base_url=address, api_key="none"), mode=instructor.Mode.JSON)
ask = [{"role": "user", "content": "A table for 12"}]
got = list(client.create_partial(model="m", response_model=Booking, messages=ask))
print(f"ended without an error after {len(asked)} request with {got}")
raise SystemExit(0 if [booking.guests for booking in got][-1:] == [1] else 1)
PYTHON
