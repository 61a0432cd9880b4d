#!/usr/bin/env python3
"""What a gate before an action costs, in turn with one check at the same depth of the answer that proposes the call.

    gate_cost.py MODEL [--probe PROBE] [--rounds 9] [--contexts 128 1024] [-o FILE.json]

Each round measures, at each length of conversation and call: a check at the end of the call, in the session that wrote
it; `Guard.gate` without its control, and with it, while that session's cache is there (`kept`); and the same where it
is not, so that the conversation is run anew (`anew`). Everything that `Guard.gate` does is in its time; `writing` is
the part in which the chat template and the tokenizer write the call, and no model runs. Ratios are over the check:
medians over the rounds with their 95 % bootstrap intervals. The order of the parts is drawn anew each round, and the
file is written anew after each.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from read_cost import ratio

from anydepth.atomic import write_whole
from anydepth.backends.protocol import Session
from anydepth.backends.transformers.load import load
from anydepth.bench.timing import FILLER, endless, seconds
from anydepth.detectors import LinearProbe
from anydepth.detectors.probe import find_shipped
from anydepth.errors import AnydepthError
from anydepth.guard import Guard
from anydepth.templates.call_formats import choose_format

CALL = {"name": "write_note", "arguments": {"text": "The tea is ready."}}
PARTS = ("check", "writing", "gate kept", "gate and control kept", "gate anew", "gate and control anew")


class Rounds:
    """Everything that is measured, once a round.

    Args:
        guard: The guard, with a probe.
        contexts: Tokens up to the end of the call, of each conversation.
    """

    def __init__(self, guard: Guard, contexts: Sequence[int]) -> None:
        self._guard: Any = guard
        tokenizer: Any = guard.template.tokenizer
        text = str(tokenizer.chat_template)
        self._format = "auto" if choose_format("auto", text) or "tool_calls" in text else "hermes"
        self._said, self._sessions = dict[int, str](), dict[int, Session]()
        self._guard.backend.kept.room = len(contexts)
        filler = tokenizer.encode(FILLER * (2 + max(contexts) // 16), add_special_tokens=False)
        written = self._written = choose_format(self._format, text)
        for context in contexts:
            bare = guard.template.call_prompt("x", CALL, written=written)
            said = tokenizer.decode(filler[: max(1, context - len(bare.prompt.ids))])
            call = guard.template.call_prompt(said, CALL, written=written)
            session = self._guard.backend.open([call.prompt], max_new_tokens=4, **endless(self._guard.backend))
            session.decode(1)
            self._said[context], self._sessions[context] = said, session
        for context in contexts:  # not timed: whatever is made once
            self._run("check", context)
            self._run("gate and control kept", context)

    def _run(self, part: str, context: int) -> float:
        """Seconds of one part."""
        if part == "check":
            session: Any = self._sessions[context]
            return seconds(lambda: self._guard.detector.check(session, [session.current(0)]))
        if part == "writing":
            said, written = self._said[context], self._written
            return seconds(lambda: self._guard.template.call_prompt(said, CALL, written=written))
        kept = self._guard.backend.kept
        room, kept.room = kept.room, kept.room if part.endswith("kept") else 0
        try:
            how = {"control": "control" in part, "format": self._format}
            return seconds(lambda: self._guard.gate(self._said[context], CALL, **how))
        finally:
            kept.room = room

    def measure(self, number: int) -> dict[str, float]:
        """Seconds of each part in round `number`."""
        order = Random(number).sample(PARTS, len(PARTS))
        return {f"{part} at {context}": self._run(part, context) for context in self._said for part in order}


def ratios_of(rounds: Sequence[dict[str, float]], contexts: Sequence[int]) -> dict[str, dict[str, float]]:
    """Each part over the check at the same depth: median over the rounds and its interval."""
    found = {}
    for context in contexts:
        under = [each[f"check at {context}"] for each in rounds]
        for part in PARTS[1:]:
            found[f"{part} at {context}"] = ratio([each[f"{part} at {context}"] for each in rounds], under)
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
