"""A server that speaks as SGLang 0.5.23 does, around a tiny model: its tokens and states are true ones."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
import transformers

SAMPLING = {
    "max_new_tokens", "stop", "stop_token_ids", "temperature", "top_p", "top_k", "min_p", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "min_new_tokens", "n", "ignore_eos", "sampling_seed",
}  # fmt: skip
"""Sampling parameters that this server knows; as in SGLang, another is refused."""

CONTEXT = 400


class Refused(Exception):
    """A request that is answered with an error: its status and body."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


class FakeSglang:
    """An HTTP server in threads of this process, until it is closed.

    Args:
        folder: The model, in safetensors.
        layers: Blocks whose outputs it returns.
        incremental: Whether a piece of a stream has the new tokens only.
        server: Fields of `/server_info` that differ.
        model: Fields of `/model_info` that differ.
        api_key: Without it in a request, the answer is 401; None asks for none.

    Attributes:
        url: Where it listens.
        requests: Path and body of each request in turn.
        aborted: Ids of requests that `/abort_request` named.
        written: Tokens that each streamed request has, by its id.
        pause_after: Write so many tokens of a streamed request and wait for its abort; None never waits.
        tamper: Is given the path and each reply or piece, and returns what is sent; a `Refused` is sent as an error.
    """

    def __init__(
        self,
        folder: Path,
        layers: Sequence[int],
        *,
        incremental: bool = False,
        server: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        api_key: str | None = None,
    ) -> None:
        self.api_key = api_key
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._layers, self._incremental, self._lock = sorted(layers), incremental, threading.Lock()
        self.model_info = {
            "model_path": str(folder), "served_model_name": str(folder), "is_generation": True, "model_type": "llama",
            "architectures": ["LlamaForCausalLM"], **(model or {}),
        }  # fmt: skip
        self.server_info = {
            "version": "0.5.23", "enable_return_aux_hidden_states": True, "aux_hidden_state_capture": "eagle3",
            "return_aux_hidden_state_layer_ids": list(layers), "return_hidden_states_mode": "last",
            "incremental_streaming_output": incremental, "enable_deterministic_inference": False,
            "allow_auto_truncate": False, "context_length": CONTEXT, "max_req_input_len": CONTEXT - 1, **(server or {}),
        }  # fmt: skip
        self.requests: list[tuple[str, Any]] = []
        self.aborted: list[str] = []
        self.written: dict[str, int] = {}
        self.pause_after: int | None = None
        self.tamper: Callable[[str, Any], Any] = lambda path, reply: reply
        self._abort = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._abort.set()
        self._http.shutdown()
        self._http.server_close()

    def calm(self) -> None:
        """Forget what was, and behave."""
        self.requests.clear()
        self.aborted.clear()
        self.written.clear()
        self.pause_after, self.tamper = None, lambda path, reply: reply
        self._abort.clear()

    # -- the model -----------------------------------------------------------------------------------------------------

    def run(self, ids: Sequence[int]) -> tuple[torch.Tensor, list[float]]:
        """Logits behind `ids`, and the outputs of the layers at the last token, one after the other."""
        seen: dict[int, torch.Tensor] = {}

        def hook(layer: int) -> Any:
            def note(module: Any, inputs: Any, output: Any) -> None:
                seen[layer] = (output[0] if isinstance(output, tuple) else output)[0, -1]

            return note

        with self._lock, torch.no_grad():
            hooks = [self._model.model.layers[layer].register_forward_hook(hook(layer)) for layer in self._layers]
            logits = self._model(torch.tensor([list(ids)])).logits[0, -1]
            for each in hooks:
                each.remove()
        return logits, torch.cat([seen[layer] for layer in self._layers]).tolist()

    def answer(self, ids: Sequence[int], params: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Each token of an answer, with the finish reason at the last."""
        out: list[int] = []
        while True:
            logits, _ = self.run([*ids, *out])
            token = _choose(logits, params, len(ids) + len(out))
            out.append(token)
            finish = self._finish(out, params)
            yield token, finish
            if finish:
                return

    def _finish(self, out: list[int], params: Mapping[str, Any]) -> dict[str, Any] | None:
        if out[-1] in {2, *(params.get("stop_token_ids") or ())}:
            return {"type": "stop", "matched": out[-1]}
        text = self._tokenizer.decode(out)
        if matched := next((stop for stop in params.get("stop") or () if stop in text), None):
            return {"type": "stop", "matched": matched}
        if len(out) == params["max_new_tokens"]:
            return {"type": "length", "length": len(out)}
        return None

    # -- endpoints -----------------------------------------------------------------------------------------------------

    def generate(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The pieces of `/generate`."""
        wanted = body.get("return_hidden_states", False)
        if not isinstance(wanted, bool):
            raise Refused(400, {"error": f'invalid type: string "{wanted}", expected a value or an array of values'})
        params = body["sampling_params"]
        if unknown := set(params) - SAMPLING:
            raise Refused(400, {"error": f"unknown field `{min(unknown)}`"})
        ids, rid, out = body["input_ids"], body.get("rid", "none"), []
        _fits(ids)
        for token, finish in self.answer(ids, params):
            if self.pause_after is not None and len(out) == self.pause_after:
                assert self._abort.wait(60), "nobody aborted"
                return
            out.append(token)
            self.written[rid] = len(out)
            meta = {"id": rid, "finish_reason": finish, "prompt_tokens": len(ids), "completion_tokens": len(out)}
            yield {"text": self._tokenizer.decode(out), "output_ids": out[-1:] if self._incremental else out[:],
                   "meta_info": meta}  # fmt: skip

    def completions(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply of `/v1/completions` to token ids, with the state of the last of them."""
        assert body["max_tokens"] == 1 and body["return_hidden_states"] == "last"
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        choices = []
        for index, ids in enumerate(prompts):
            _fits(ids)
            choices.append({"index": index, "text": "", "finish_reason": "length", "hidden_states": self.run(ids)[1]})
        return {
            "choices": choices,
            "usage": {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": len(prompts)},
        }

    def abort(self, body: Mapping[str, Any]) -> None:
        self.aborted.append(body["rid"])
        self._abort.set()


def _choose(logits: torch.Tensor, params: Mapping[str, Any], position: int) -> int:
    if not params["temperature"]:
        return int(logits.argmax())
    random = torch.Generator().manual_seed(params.get("sampling_seed", 42) * 1000 + position)
    return int(torch.multinomial((logits / params["temperature"]).softmax(-1), 1, generator=random))


def _fits(ids: Sequence[int]) -> None:
    if len(ids) >= CONTEXT:
        raise Refused(400, {"error": {"message": f"The input ({len(ids)} tokens) is longer than {CONTEXT}."}})


def _handler_of(fake: FakeSglang) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            info = {"/model_info": fake.model_info, "/server_info": fake.server_info}
            if self._let_in():
                self._json(200, info[self.path])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._let_in():
                return
            fake.requests.append((self.path, body))
            try:
                if self.path == "/abort_request":
                    fake.abort(body)
                    self._json(200, None)
                elif self.path == "/v1/completions":
                    self._json(200, fake.tamper(self.path, fake.completions(body)))
                elif body.get("stream"):
                    self._stream(fake.generate(body))
                else:
                    self._json(200, list(fake.generate(body))[-1])
            except Refused as refused:
                self._json(refused.status, refused.body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def _let_in(self) -> bool:
            if fake.api_key is None or self.headers["Authorization"] == f"Bearer {fake.api_key}":
                return True
            self._json(401, {"error": "Unauthorized"})
            return False

        def _json(self, status: int, body: Any) -> None:
            content = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, pieces: Iterator[dict[str, Any]]) -> None:
            first = list(islice(pieces, 1))  # a refusal comes before the stream
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for piece in chain(first, pieces):
                self.wfile.write(b"data: " + json.dumps(fake.tamper(self.path, piece)).encode() + b"\n\n")
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

    return Handler
