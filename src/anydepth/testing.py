"""A backend that follows a script instead of a model: for tests of the guard, and of your own policies and detectors.

    >>> from anydepth import Guard
    >>> from anydepth.testing import ScriptedBackend, ScriptedDetector
    >>> guard = Guard.from_backend(ScriptedBackend(["a long answer"]), ScriptedDetector({0: 0.1, 4: 0.9}))
    >>> answer = guard.generate("question")
    >>> answer.finish_reason, answer.verdict.depth, answer.leak
    ('content_filter', 4, 2)

Token ids below 256 are the bytes of UTF-8, `END` ends the turn, and other ids have no text. Nothing heavy is imported.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from numbers import Real
from typing import Any, Literal, TypeVar

import numpy as np

from anydepth.backends.conversed import Conversed, WrittenText, conversed
from anydepth.backends.protocol import Capability, CheckPoint, FinishedAnswer, ModelIdentity, Read, Session, Site
from anydepth.errors import CapabilityError, ConfigError, PromptError, UnsupportedModel
from anydepth.templates.header import is_mean, mean_divisor
from anydepth.templates.template import ChatTemplate, Header, Prompt
from anydepth.types import Decoded, Score

__all__ = ["END", "ScriptedBackend", "ScriptedDetector"]

END = 256
"""The end-of-turn token."""

_SPECIAL = {"<|end|>": END, "<|user|>": 257, "<|assistant|>": 258, "<|system|>": 259}
_VOCABULARY = 260

T = TypeVar("T")
Script = Mapping[int, T] | Callable[[int, int], T]
"""One value per depth, which holds until the next depth that has one; or a function of row and depth."""


class ScriptedTokenizer:
    """Bytes as tokens, and a chat template of two Safety Tokens: `<|end|><|assistant|>`."""

    name_or_path = "scripted"
    chat_template = "a turn is <|role|>content<|end|>"

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False, **_: Any
    ) -> str:
        """The text of `messages`."""
        turns = [f"<|{message['role']}|>{message['content']}<|end|>" for message in messages]
        return "".join(turns) + ("<|assistant|>" if add_generation_prompt else "")

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """The ids of `text`, as `{"input_ids": ...}`."""
        ids: list[int] = []
        while text:
            name = next((name for name in _SPECIAL if text.startswith(name)), None)
            ids += [_SPECIAL[name]] if name else text[0].encode()
            text = text[len(name or text[0]) :]
        return {"input_ids": ids}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False, **_: Any) -> str:
        """The text of `ids`; a character that is not whole becomes U+FFFD."""
        names = {} if skip_special_tokens else {special: name for name, special in _SPECIAL.items()}
        return b"".join(bytes([i]) if i < 256 else names.get(i, "").encode() for i in ids).decode(errors="replace")

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The name of each id."""
        return [self.decode([i]) for i in ids]


class ScriptedBackend:
    """Implements `anydepth.backends.protocol.Backend` by a script.

    Args:
        answers: What each row answers, as token ids or as text (then `END` follows). Row r of every session gives
            `answers[r]`.
        states: Hidden state per depth, float `[width]`; zeros by default.
        look_aheads: Text per depth that follows the Safety Tokens. A word counts as one token.
        logprobs: Log-probabilities per depth of the token after the Safety Tokens, float `[260]`; uniform by default.
        finish: How an answer ends that has no `END`: `stop` (as by a stop string) or `length` (the context is full).
        at_most: Tokens that the first, second, … `decode` hands out at most, over and over; empty is no limit.
        capabilities: What it offers; by default what a model in this process does, but for trained Safety Tokens.
        packed: False if `read_batch` is to refuse, as for an architecture that cannot take the packed mask.
        width: Length of a hidden state.
        blocks: Number of blocks, for `check_site`.

    Attributes:
        sessions: Every session so far; each keeps what was done with it.

    Raises:
        ConfigError: An answer is empty or goes on after `END`, or `finish` or `at_most` has a value it cannot have.
    """

    def __init__(
        self,
        answers: Sequence[str | Sequence[int]],
        *,
        states: Script[Sequence[float]] | None = None,
        look_aheads: Script[str] | None = None,
        logprobs: Script[Sequence[float]] | None = None,
        finish: Literal["stop", "length"] = "stop",
        at_most: Sequence[int] = (),
        capabilities: frozenset[Capability] = frozenset(Capability) - {Capability.EMBEDDINGS, Capability.TOKEN_TEXTS},
        packed: bool = True,
        width: int = 4,
        blocks: int = 4,
    ) -> None:
        if isinstance(answers, str):
            raise ConfigError(f"answers is the text {answers!r}; give a list of answers, one a row")
        if finish not in ("stop", "length"):
            raise ConfigError(f"finish is {finish!r}; choose stop or length")
        if any(limit < 1 for limit in at_most):
            raise ConfigError(f"at_most is {list(at_most)}; a decode hands out at least 1 token")
        self.answers = [_token_ids(answer) for answer in answers]
        self.states, self.look_aheads, self.logprobs = states or {}, look_aheads or {}, logprobs or {}
        self.finish: Literal["stop", "length"] = finish
        self.at_most, self.packed, self.capabilities = tuple(at_most), packed, capabilities
        self.batches_itself = False
        self.tokenizer = ScriptedTokenizer()
        self.template = ChatTemplate(self.tokenizer)
        self.identity = ModelIdentity("scripted", None, "scripted", width, blocks, fingerprint="scripted")
        self.sessions: list[ScriptedSession] = []

    @property
    def header(self) -> Header:
        """The two Safety Tokens."""
        return self.template.header

    def check_site(self, site: Site) -> None:
        """Raise UnsupportedModel if there is no such block."""
        if site.block >= self.identity.num_layers:
            raise UnsupportedModel(f"site is {site}, the script has {self.identity.num_layers} blocks")

    def prove(self, needs: frozenset[Capability], reads: Sequence[Read]) -> None:
        """A script has no model that a check could fail on."""

    def open(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> "ScriptedSession":
        """Start the scripted answers; `seed` and `options` are kept in the session and change nothing.

        Raises:
            PromptError: There is no prompt.
            ConfigError: There are fewer answers than prompts.
        """
        if not prompts:
            raise PromptError("there is no prompt to answer; give at least one")
        if len(prompts) > len(self.answers):
            raise ConfigError(f"{len(prompts)} prompts for {len(self.answers)} scripted answers; script one for each")
        answers = self.answers[: len(prompts)]
        session = ScriptedSession(self, prompts, answers, max_new_tokens, {"seed": seed, **options})
        self.sessions.append(session)
        return session

    def replay(self, prompt: Prompt, answer_ids: Sequence[int]) -> "ScriptedSession":
        """Open a session that gives `answer_ids`."""
        session = ScriptedSession(self, [prompt], [tuple(answer_ids)], len(answer_ids), {})
        self.sessions.append(session)
        return session

    def unguarded(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> list[tuple[int, ...]]:
        """The scripted answers, cut to `max_new_tokens`."""
        return [answer[:max_new_tokens] for answer in self.answers[: len(prompts)]]

    def read_batch(
        self,
        answers: Sequence[FinishedAnswer],
        sites: Sequence[Site],
        *,
        tokens: Sequence[int],
        suffix: Sequence[int] | None = None,
    ) -> Sequence[Mapping[Site, np.ndarray]]:
        """The scripted states, the same at every site and single token; UnsupportedModel unless `packed`."""
        if not self.packed:
            raise UnsupportedModel("the script does not take the packed mask")
        states = [[[self.state(row, d, t) for t in tokens] for d in each.depths] for row, each in enumerate(answers)]
        return [{site: np.array(found, np.float32) for site in sites} for found in states]

    def state(self, row: int, depth: int, token: int = 0) -> np.ndarray:
        """The scripted hidden state of `Read.token`, float32 `[width]`; an answer's n-th token has that of depth n."""
        width = self.identity.hidden_size
        if is_mean(token):
            last = [self.state(row, each) for each in range(max(depth + token, 0) + 1, depth + 1)]
            return np.asarray(np.sum(last or [[0.0] * width], axis=0) / mean_divisor(token, depth), dtype=np.float32)
        return np.asarray(_look_up(self.states, row, depth, [0.0] * width), dtype=np.float32)

    def first_token_ids(self, texts: Sequence[str]) -> list[int]:
        """The first byte of each text."""
        return [text.encode()[0] for text in texts]

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens left out."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)


class ScriptedSession:
    """Implements `anydepth.backends.protocol.Session`; strict where an engine would go wrong silently.

    As in a real batch, a decode ends for all rows as soon as one live row ends.

    Attributes:
        decoded: The `n` of every `decode`.
        checked: Every check point that was read.
        dropped: The rows that were dropped.
        closed: True after `close`.
        options: The seed and sampling options that it was opened with.
    """

    def __init__(
        self,
        backend: ScriptedBackend,
        prompts: Sequence[Prompt],
        answers: Sequence[tuple[int, ...]],
        max_new_tokens: int,
        options: Mapping[str, Any],
    ) -> None:
        self.rows = len(prompts)
        self.options, self.closed = dict(options), False
        self.decoded: list[int] = []
        self.checked: list[CheckPoint] = []
        self.dropped: list[int] = []
        self._backend, self._answers, self._budget = backend, answers, max_new_tokens
        self._prompts, self._depths = prompts, [prompt.prefill for prompt in prompts]
        self._given, self._finished = 0, set[int]()
        self._limits = cycle(backend.at_most or (max_new_tokens,))

    def decode(self, n: int) -> list[Decoded]:
        """Hand out up to `n` more tokens of every live row."""
        self._must_be_open()
        if n < 1:
            raise ValueError(f"decode({n}): ask for at least one token")
        self.decoded.append(n)
        live = [row for row in range(self.rows) if row not in self._finished and row not in self.dropped]
        left = [min(len(self._answers[row]), self._budget) - self._given for row in live]
        begin, self._given = self._given, self._given + min([n, next(self._limits), *left])
        return [self._hand_out(row, begin) if row in live else Decoded(()) for row in range(self.rows)]

    def _hand_out(self, row: int, begin: int) -> Decoded:
        answer = self._answers[row]
        fresh = answer[begin : self._given]
        end_tokens = int(fresh[-1:] == (END,))
        finish = None
        if self._given >= len(answer):
            finish = "stop" if end_tokens else self._backend.finish
        elif self._given >= self._budget:
            finish = "length"
        if finish:
            self._finished.add(row)
        self._depths[row] += len(fresh) - end_tokens
        return Decoded(fresh, finish, end_tokens)

    def drop(self, row: int) -> None:
        """Give no more tokens to `row`."""
        self._must_be_open()
        self.dropped.append(row)

    def visit(self, points: Sequence[CheckPoint]) -> None:
        """Note these checks; ValueError if one is neither at depth 0 nor where its row is."""
        self._must_be_open()
        for point in points:
            if point.depth not in (0, self._depths[point.row]):
                raise ValueError(f"row {point.row} is at depth {self._depths[point.row]}, not at {point.depth}")
        self.checked += points

    def hidden_states(self, points: Sequence[CheckPoint], reads: Sequence[Read]) -> np.ndarray:
        """The scripted states, the same for every read but means, float32 `[len(points), len(reads), width]`."""
        self.visit(points)
        states = [[self._backend.state(point.row, point.depth, read.token) for read in reads] for point in points]
        return np.array(states, np.float32)

    def look_ahead(
        self, points: Sequence[CheckPoint], max_new_tokens: int, decided: Callable[[str], bool]
    ) -> list[str]:
        """The scripted texts, word by word until decided."""
        self.visit(points)
        scripts = [_look_up(self._backend.look_aheads, point.row, point.depth, "") for point in points]
        return [_write(script.split(" ")[:max_new_tokens], decided) for script in scripts]

    def next_token_logprobs(self, points: Sequence[CheckPoint]) -> np.ndarray:
        """The scripted log-probabilities, float32 `[len(points), 260]`."""
        self.visit(points)
        uniform = [-float(np.log(_VOCABULARY))] * _VOCABULARY
        rows = [_look_up(self._backend.logprobs, point.row, point.depth, uniform) for point in points]
        return np.asarray(rows, dtype=np.float32)

    def conversations(self, points: Sequence[CheckPoint]) -> list[Conversed]:
        """The messages of each row, and its answer so far."""
        pairs = [(self._prompts[point.row], self._answers[point.row], point.depth) for point in points]
        return [conversed(q, (*q.ids[q.start :], *a)[:depth], self._backend.decode_text) for q, a, depth in pairs]

    def close(self) -> None:
        """Note that it was closed; nothing else works afterwards."""
        self.closed = True

    def _must_be_open(self) -> None:
        if self.closed:
            raise RuntimeError("the session is closed")


class ScriptedDetector:
    """A detector whose scores are given.

    Args:
        scores: Score per depth, or a function of row and depth. An exception fails the check; what is neither a number
            nor an exception is handed on as it is, as a faulty detector would.
        needs: What it claims to need of a backend; nothing by default.
    """

    name = "scripted"

    def __init__(self, scores: Script[Any], *, needs: frozenset[Capability] = frozenset()) -> None:
        self.scores, self.needs = scores, needs

    def bind(self, backend: Any) -> None:
        """Raise CapabilityError if the backend lacks something that `needs` names."""
        if missing := self.needs - backend.capabilities:
            raise CapabilityError(f"detector {self.name!r} needs {', '.join(sorted(missing))}; choose another backend")

    def check(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        """The scripted scores; raises the first exception among them."""
        if isinstance(session, ScriptedSession):
            session.visit(points)
        replies: list[Any] = [_look_up(self.scores, point.row, point.depth, 0.0) for point in points]
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return [Score(float(reply)) if isinstance(reply, Real) else reply for reply in replies]


def _token_ids(answer: str | Sequence[int]) -> tuple[int, ...]:
    ids = (*answer.encode(), END) if isinstance(answer, str) else tuple(answer)
    if not ids:
        raise ConfigError("an answer is empty; script at least one token, e.g. END")
    if END in ids[:-1]:
        raise ConfigError(f"answer {list(ids)} goes on after END ({END}); END is its last token")
    return ids


def _look_up(script: Script[T], row: int, depth: int, default: T) -> T:
    if not isinstance(script, Mapping):
        return script(row, depth)
    return script[max(known)] if (known := [key for key in script if key <= depth]) else default


def _write(words: Sequence[str], decided: Callable[[str], bool]) -> WrittenText:
    texts = [WrittenText(" ".join(words[:count]), count) for count in range(1, len(words) + 1)]
    return next(filter(decided, texts), texts[-1])
