#!/usr/bin/env python3
"""What a gate before an action costs, in turn with one check at the same depth of an answer that is under way.

    gate_cost.py MODEL [--probe PROBE] [--rounds 9] [--contexts 128 1024] [-o FILE.json]

Each round measures, at each length of conversation and call: a check at the end of the call, in a session whose cache
has the conversation; a gate without its control; with it; and how much of each was the pass over the conversation,
which a check does not need: its cache is there. The template has written the call before. Ratios are over the check:
of the gate without that pass (`reading`), and of all of it (`whole`). They are the medians over the rounds with their
95 % bootstrap intervals. The file is written anew after each round.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from read_cost import ratio

from anydepth.atomic import write_whole
from anydepth.backends.protocol import Session
from anydepth.backends.transformers import packed
from anydepth.backends.transformers.load import load
from anydepth.bench.timing import FILLER, endless, seconds
from anydepth.detectors import LinearProbe
from anydepth.detectors.probe import find_shipped
from anydepth.errors import AnydepthError
from anydepth.gate import gate_calls
from anydepth.guard import Guard
from anydepth.templates.call_formats import choose_format
from anydepth.templates.proposed_call import CallPrompt

CALL = {"name": "write_note", "arguments": {"text": "The tea is ready."}}


class TextPass:
    """Counts the seconds of the passes over conversations, while it is `counted`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Have the packed pass tell how long its run over the text took."""
        whole, self.seconds = packed.run_texts, 0.0

        def run(*given: Any) -> Any:
            found: list[Any] = []
            self.seconds += seconds(lambda: found.append(whole(*given)))
            return found[0]

        packed.run_texts = run
        try:
            yield
        finally:
            packed.run_texts = whole


class Rounds:
    """Everything that is measured, once a round; the order is turned around each second round."""

    def __init__(self, guard: Guard, contexts: Sequence[int]) -> None:
        self._guard, self._text = guard, TextPass()
        tokenizer: Any = guard.template.tokenizer
        written = choose_format("auto", str(tokenizer.chat_template)) or choose_format("hermes", "")
        self._calls, self._sessions = dict[int, CallPrompt](), dict[int, Session]()
        filler = tokenizer.encode(FILLER * (2 + max(contexts) // 16), add_special_tokens=False)
        for context in contexts:
            bare = guard.template.call_prompt("x", CALL, written=written)
            said = tokenizer.decode(filler[: max(1, context - len(bare.prompt.ids))])
            call = guard.template.call_prompt(said, CALL, written=written)
            backend: Any = guard.backend
            session = backend.open([call.prompt], max_new_tokens=4, **endless(backend))
            session.decode(1)
            self._calls[context], self._sessions[context] = call, session
        for context in contexts:  # not timed: whatever is made once
            self._check(context)
            self._gate(context, control=True)

    def _check(self, context: int) -> None:
        session = self._sessions[context]
        self._guard.detector.check(session, [session.current(0)])

    def _gate(self, context: int, *, control: bool) -> None:
        guard = self._guard
        gate_calls(guard.backend, guard.detector, guard.config, [self._calls[context]], control=control)

    def measure(self, number: int) -> dict[str, float]:
        """Seconds of each part in round `number`."""
        found: dict[str, float] = {}
        for context in self._sessions:
            for part in ("check", "gate", "gate and control")[:: 1 if number % 2 else -1]:
                at = f"{part} at {context}"
                if part == "check":
                    found[at] = seconds(lambda c=context: self._check(c))
                    continue
                with self._text.counted():
                    whole = seconds(lambda c=context, p=part: self._gate(c, control=p != "gate"))
                found[at], found[f"{at}, reading"] = whole, whole - self._text.seconds
        return found


def ratios_of(rounds: Sequence[Mapping[str, float]], contexts: Sequence[int]) -> dict[str, dict[str, float]]:
    """Each part of a gate over the check at the same depth: median over the rounds and its interval."""
    found = {}
    for context in contexts:
        for part in ("gate", "gate and control"):
            for key in (f"{part} at {context}, reading", f"{part} at {context}"):
                over, under = ([each[name] for each in rounds] for name in (key, f"check at {context}"))
                found[key if key.endswith("reading") else f"{key}, whole"] = ratio(over, under)
    return found


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--probe")
    parser.add_argument("--dtype", default="fast")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024], help="tokens up to the end of the call")
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure round by round, print and write."""
    given = arguments()
    backend = load(given.model, dtype=given.dtype)
    probe = LinearProbe.load(given.probe) if given.probe else find_shipped(backend)
    if probe is None:
        raise SystemExit("no probe for this model is shipped; name one with --probe")
    about = {"model": Path(given.model).name, "dtype": str(backend.model.dtype), "contexts": given.contexts}
    reads = {"reads": [str(each) for each in probe.reads]}
    try:
        measured = Rounds(Guard.from_backend(backend, probe), given.contexts)
    except AnydepthError as error:
        raise SystemExit(str(error)) from error
    done: list[dict[str, float]] = []
    for number in range(given.rounds):
        done.append(measured.measure(number))
        print(number + 1, json.dumps({key: round(value, 4) for key, value in done[-1].items()}), flush=True)
        if given.out:
            whole = {**about, **reads, "ratios": ratios_of(done, given.contexts), "seconds": done}
            write_whole(given.out, (json.dumps(whole, indent=1) + "\n").encode())
    for what, found in ratios_of(done, given.contexts).items():
        print(f"{what}: {found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")


if __name__ == "__main__":
    main()
