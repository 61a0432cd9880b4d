"""Hold an answer to a grammar: of each next token, only those that the grammar allows are left.

The grammar library is llguidance. It works on the bytes of tokens, with any fast tokenizer.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from threading import Lock
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from anydepth.errors import ConfigError, UnsupportedModel
from anydepth.extras import require
from anydepth.templates.marker_tokens import is_marker

_LONGEST = 300
"""Characters of an error of llguidance that are repeated."""

_REPEATED = re.compile(r"\s*\d+ \| ")
_PLACE = re.compile(r"^at \d+\(\d+\): |\s*<non-verbose/>$")


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar that was compiled for one tokenizer; any number of answers may be held to it.

    Attributes:
        matcher: llguidance's matcher before the first token. It is copied, never advanced.
        ends: Ids of the tokens that end a turn.
    """

    matcher: Any
    ends: frozenset[int]

    def constraint(self, rows: int, begin: int) -> "Constraint":
        """What holds the answers of one session to it; see `Constraint`."""
        return Constraint(self, rows, begin)


class GrammarTokens:
    """The tokens of a model as llguidance knows them. Making it takes about a second for a large vocabulary.

    Args:
        tokenizer: A fast tokenizer of Transformers.
        ends: Ids of the tokens that end a turn.
        size: Number of logits of the model.

    Raises:
        MissingExtra: llguidance is not installed.
        UnsupportedModel: The tokenizer is not a fast one, or llguidance cannot read it.
        ConfigError: No token ends a turn, so that an answer could not end where the grammar does.
    """

    def __init__(self, tokenizer: Any, ends: frozenset[int], size: int) -> None:
        self._guidance: Any = require("llguidance", extra="server")
        self.ends = ends
        if not ends:
            raise ConfigError(
                "a grammar needs a token that ends the turn, and the model has none; set eos_token_id in "
                "generation_config.json, or pass it"
            )
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if fast is None:
            raise UnsupportedModel(
                f"{type(tokenizer).__name__} is not a fast tokenizer, which grammars need; convert it to tokenizer.json"
            )
        try:
            size = max(size, len(tokenizer))
            self._tokens = self._guidance.LLTokenizer(_described(fast), n_vocab=size, eos_token=sorted(ends))
        except Exception as error:
            raise UnsupportedModel(f"llguidance cannot read the tokenizer: {_told(error)}") from error

    def compile(self, grammar: str | Mapping[str, Any]) -> Grammar:
        """A grammar in llguidance's variant of Lark, or a JSON Schema, for answers of this model.

        Raises:
            ConfigError: The grammar cannot be read, or is too complex; the message has llguidance's words.
        """
        make = self._guidance.LLMatcher
        try:
            if not isinstance(grammar, str):
                grammar = make.grammar_from_json_schema(json.dumps(grammar))
            limits = self._guidance.LLParserLimits(verbose_errors=False)
            matcher = make(self._tokens, grammar, log_level=0, limits=limits)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust code is no Exception
            raise ConfigError(f"the grammar cannot be used: {_told(error)}") from error
        if matcher.is_error():
            raise ConfigError(f"the grammar cannot be used: {_told(matcher.get_error())}")
        return Grammar(matcher, self.ends)


class Grammars:
    """Compiles grammars for one model, of whose tokens llguidance is told when the first one is wanted.

    Args:
        tokenizer: The model's tokenizer.
        size: Number of logits of the model.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size
        self._lock, self._known = Lock(), dict[frozenset[int], GrammarTokens]()

    def compile(self, grammar: "str | Mapping[str, Any] | Grammar", ends: frozenset[int]) -> Grammar:
        """A grammar for answers that end with one of `ends`; see `GrammarTokens` for its kinds and the errors."""
        if isinstance(grammar, Grammar):
            if grammar.ends != ends:
                found, wanted = (sorted(each) for each in (grammar.ends, ends))
                raise ConfigError(f"the grammar was compiled for the end tokens {found}, not {wanted}; compile it anew")
            return grammar
        with self._lock:
            if ends not in self._known:
                self._known[ends] = GrammarTokens(self._tokenizer, ends, self._size)
        return self._known[ends].compile(grammar)


class Constraint(LogitsProcessor):
    """Leaves the answers of one session no token that their grammar does not allow.

    Where each answer stands in the grammar follows from the ids that it is given, so that it does not matter how many
    calls of `generate` an answer is made of. An answer that has ended is left alone.

    Args:
        grammar: The grammar.
        rows: How many answers there are.
        begin: Column of the first token of the answers in the ids, which are padded on the left.
    """

    def __init__(self, grammar: Grammar, rows: int, begin: int) -> None:
        self._begin = begin
        self._rows = [_Row(grammar) for _ in range(rows)]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        """The scores `[rows, vocab_size]` of the next tokens, -inf where one is not allowed.

        Args:
            input_ids: The whole text of each row so far, `[rows, t]`.
            scores: Scores of the next tokens, `[rows, vocab_size]`.

        Raises:
            ConfigError: Nothing that the grammar allows is left, or the grammar became too complex.
        """
        allowed = np.ones(scores.shape, bool)
        for place, (row, ids) in enumerate(zip(self._rows, input_ids[:, self._begin :].tolist(), strict=True)):
            row.follow(ids)
            if not row.ended:
                row.allow(allowed[place])
        left = scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), float("-inf"))
        if bool((left == float("-inf")).all(1).any()):
            raise ConfigError(
                "no token is left that the grammar allows; leave out options that take tokens away (suppress_tokens, "
                "bad_words_ids, min_new_tokens), or use a tokenizer that can spell any text"
            )
        return left


class _Row:
    """Where one answer stands in its grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self._matcher, self._ends = grammar.matcher.deep_copy(), grammar.ends
        self._fed, self.ended = 0, False

    def follow(self, ids: list[int]) -> None:
        """Go to where the answer is after `ids`; a token that was taken back is taken back here."""
        stop = next((place for place, id in enumerate(ids) if id in self._ends), len(ids))
        self.ended = stop < len(ids)
        if stop < self._fed:
            self._matcher.rollback(self._fed - stop)
        elif stop > self._fed:
            self._matcher.consume_tokens(ids[self._fed : stop])
        self._fed = stop
        self._must_work()

    def allow(self, allowed: np.ndarray) -> None:
        """Write into `allowed`, bool `[vocab_size]`, which tokens may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._must_work()
        known = np.unpackbits(bits, bitorder="little").astype(bool)[: len(allowed)]
        allowed[: len(known)], allowed[len(known) :] = known, False

    def _must_work(self) -> None:
        if self._matcher.is_error():
            raise ConfigError(f"the grammar cannot be followed: {_told(self._matcher.get_error())}; simplify it")


def constrained(options: Mapping[str, Any], grammar: Grammar | None, *, rows: int, begin: int) -> dict[str, Any]:
    """Options of `generate` that hold its answers to `grammar` too; see `Constraint` for the numbers."""
    if grammar is None:
        return dict(options)
    given = options.get("logits_processor") or ()
    return {**options, "logits_processor": LogitsProcessorList([*given, grammar.constraint(rows, begin)])}


def _described(fast: Any) -> str:
    """The tokenizer as JSON text, every marker a special token: no text, nor any JSON string, has one in it."""
    described = json.loads(fast.to_str())
    described["padding"] = described["truncation"] = None
    for token in described.get("added_tokens") or ():
        token["special"] = is_marker(token["content"], special=token["special"])
    return json.dumps(described)


def _told(error: object) -> str:
    """An error without the grammar that llguidance repeats behind it and the place in it, cut where it is long."""
    lines = takewhile(lambda line: not _REPEATED.match(line), str(error).splitlines())
    text = _PLACE.sub("", " ".join(" ".join(lines).split())) or type(error).__name__
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
