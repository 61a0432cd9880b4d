#!/usr/bin/env bash
# The SGLang router writes the request's body anew: fields that it does not know are gone, and others are added.
#
# Guess: a load balancer in front of servers that speak the OpenAI API passes the body on, so that a server's own option
#   in the request (`extra_body` of the client) and a header of its own reach the server.
# What happens: the body is written anew. An unknown field and an unknown header are dropped without an error, and
#   SGLang's own options are added with their defaults.
# Versions: sglang-router 0.3.2; Python 3.11
# Output seen on 2026-11-29:
#   status 200; my_option reached the server: False; x-my-option reached the server: False
#   fields that nobody sent: continue_final_message, ignore_eos, logprobs, no_stop_trim, return_hidden_states,
#     separate_reasoning, skip_special_tokens, stream, stream_reasoning
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile sglang-router==0.3.2
"$work/venv/bin/python" - "$work/log" <<'PYTHON'
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = {
    "id": "a", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
}
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "my_option": 1}
got = []


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, body):
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):  # what the router asks before it uses a server
        self.reply({"object": "list", "data": [{"id": "m", "object": "model"}]} if "models" in self.path else {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        got.append((body, {name.lower() for name in self.headers}))
        self.reply(ANSWER)


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
port = free_port()
command = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
command += ["--policy", "round_robin", "--worker-urls", f"http://127.0.0.1:{server.server_port}"]
headers = {"Content-Type": "application/json", "X-My-Option": "1"}
request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(ASKED).encode(), headers)
with open(sys.argv[1], "w") as log:
    router = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
try:
    for _ in range(120):
        time.sleep(0.5)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                status = answer.status
            break
        except OSError:  # not up yet, or the server is not registered yet
            continue
    else:
        raise SystemExit(f"the router did not answer: {open(sys.argv[1]).read()[-2000:]}")
finally:
    router.terminate()
    router.wait()
body, named = got[-1]
option, header = "my_option" in body, "x-my-option" in named
added = sorted(body.keys() - ASKED.keys())
print(f"status {status}; my_option reached the server: {option}; x-my-option reached the server: {header}")
print(f"fields that nobody sent: {', '.join(added)}")
raise SystemExit(option or header or not added)
PYTHON
