#!/usr/bin/env bash
# instructor asks four times for an answer that was blocked.
#
# Guess: an answer that ends with content_filter ends the request, with an error that says so (as the openai client's
#   `parse` does).
# What happens: it is taken for bad JSON and asked for again, three times more, and the error is about JSON.
# Versions: instructor 1.17.0, openai 3.3.0; Python 3.11
# Output seen on 2026-11-28:
#   requests: 4; InstructorRetryException; its last exception names content_filter: False
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


def reply(content):
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "content_filter"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


class Booking(BaseModel):
    guests: int


address, asked = serve(lambda _: reply("That is not for me to say."))
client = instructor.from_openai(openai.OpenAI(base_url=address, api_key="none"), mode=instructor.Mode.JSON)
try:
    client.create(model="m", response_model=Booking, messages=[{"role": "user", "content": "A table for 12"}])
except Exception as error:
    seen = type(error).__name__
    named = "content_filter" in str(error).split("<last_exception>")[-1]
print(f"requests: {len(asked)}; {seen}; its last exception names content_filter: {named}")
raise SystemExit(0 if len(asked) == 4 and seen == "InstructorRetryException" else 1)
PYTHON
