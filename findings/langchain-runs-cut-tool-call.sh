#!/usr/bin/env bash
# LangChain runs a tool call whose arguments were cut off by a content filter.
#
# Guess: a streamed call whose JSON never ended, in an answer that ended with content_filter, is not run.
# What happens: the cut JSON is completed and the tool is run with what there was (a number cut from 12 to 1), and the
#   model is asked again.
# Versions: langchain 1.5.2, langchain-openai 1.7.4, langchain-core 1.8.3, openai 3.57.0; Python 3.11
# Output seen on 2026-11-28:
#   the tool ran with [('Paris', 1)]; requests: 2
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile langchain==1.5.2 langchain-openai==1.7.4 langchain-core==1.8.3 openai==3.57.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI


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


def chunks(number):
    if number > 1:
        return [chunk({"role": "assistant", "content": "Done."}, "stop")]
    name = {"index": 0, "id": "c1", "type": "function", "function": {"name": "book", "arguments": ""}}
    part = {"index": 0, "function": {"arguments": '{"city": "Paris", "guests": 1'}}  # of 12}
    return [chunk({"role": "assistant", "tool_calls": [name]}), chunk({"tool_calls": [part]}), chunk({}, "content_filter")]


ran = []


def book(city: str, guests: int) -> str:
    """Book a table."""
    ran.append((city, guests))
    return "booked"


address, asked = serve(chunks)
agent = create_agent(ChatOpenAI(model="m", base_url=address, api_key="none", streaming=True), [book])
agent.invoke({"messages": [("user", "A table for 12 in Paris")]})
print(f"the tool ran with {ran}; requests: {len(asked)}")
raise SystemExit(0 if ran == [("Paris", 1)] and len(asked) == 2 else 1)
PYTHON
