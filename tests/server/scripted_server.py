"""A real server over a script: the user's message says what the model writes and what goes wrong.

    say: TEXT       writes TEXT; a check fails the answer (score 0.99) once the text has the word `harm` in it
    slow: TEXT      the same, 30 ms a window
    break: TEXT     the engine raises after 8 tokens
    blind: TEXT     the detector raises after 8 tokens
    anything else   is answered by itself

Run as `python scripted_server.py '{"settings": {…}, "thinking": false, "forms": false}'`; with `forms` it takes
requests for JSON and for calls, with `blind_replays` the detector raises over finished answers.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from anydepth.backends.protocol import CheckPoint
from anydepth.guard import Guard
from anydepth.server.engine.transformers_engine import TransformersEngine
from anydepth.server.run import serve
from anydepth.settings import Settings, parse_settings
from anydepth.templates.template import ChatTemplate, Prompt
from anydepth.testing import END, ScriptedBackend, ScriptedSession
from anydepth.types import Decoded, Score

KINDS = ("say", "slow", "break", "blind")


class Session(ScriptedSession):
    kind, prompt_text, prefill_text = "say", "", ""

    def decode(self, n: int) -> list[Decoded]:
        if self.kind == "slow":
            time.sleep(0.03)
        if self.kind == "break" and self._given >= 8:
            raise RuntimeError("the model broke over: " + self.prompt_text)
        return super().decode(n)

    @property
    def text(self) -> str:
        given = bytes(i for i in self._answers[0][: self._given] if i != END)
        return self.prefill_text + given.decode(errors="replace")


class Backend(ScriptedBackend):
    """Opens a session by what the prompt says."""

    def open(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> Session:
        (prompt,) = prompts
        asked = self.tokenizer.decode(prompt.ids[: prompt.start])
        asked = asked.rpartition("<|user|>")[2].partition("<|end|>")[0]
        kind, _, text = asked.partition(": ")
        kind, text = (kind, text) if kind in KINDS else ("say", asked)
        answers = [(*text.encode(), END)]
        session = Session(self, prompts, answers, max_new_tokens, {"seed": seed, **options})
        session.kind, session.prompt_text = kind, asked
        session.prefill_text = self.tokenizer.decode(prompt.ids[prompt.start :])
        return session

    blind_replays = False

    def replay(self, prompt: Prompt, answer_ids: Sequence[int]) -> Session:
        session = Session(self, [prompt], [tuple(answer_ids)], len(answer_ids), {})
        session.kind = "blind" if self.blind_replays else "say"
        return session


class FormedBackend(Backend):
    """Says that it holds answers to a grammar; the script has to see to that."""

    def grammar(self, grammar: str) -> str:
        return grammar


class Detector:
    """Reads the text itself."""

    name, needs = "scripted", frozenset()

    def bind(self, backend: Any) -> None:
        pass

    def check(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        session.visit(points)
        if session.kind == "blind" and session._given >= 8:
            raise RuntimeError("the detector broke over: " + session.text)
        text = session.text if points[0].depth else session.prompt_text.partition(": ")[0]
        return [Score(0.99 if "harm" in text else 0.01) for _ in points]


def engine_of(
    settings: Settings, *, thinking: bool = False, forms: bool = False, blind_replays: bool = False
) -> TransformersEngine:
    backend = (FormedBackend if forms else Backend)(["unused"])
    backend.blind_replays = blind_replays
    backend.tokenizer.all_special_tokens = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    if thinking:
        backend.tokenizer.chat_template += " <think></think>"
        backend.template = ChatTemplate(backend.tokenizer)
    guard = Guard.from_backend(
        backend,
        Detector(),
        schedule=settings.guard.build_schedule(),
        policy=settings.guard.build_policy(),
        release=settings.guard.release,
        on_error=settings.guard.on_error,
        refusal=settings.guard.refusal,
    )
    limits = settings.limits
    return TransformersEngine(
        guard,
        model="scripted",
        live=limits.live,
        queue=limits.queue,
        timeout=limits.timeout_seconds,
        end_token_ids=frozenset({END}),
    )


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    settings = parse_settings(options.get("settings", {}))
    kinds = {name: options.get(name, False) for name in ("thinking", "forms", "blind_replays")}
    serve(lambda: engine_of(settings, **kinds), settings)
