#!/usr/bin/env python3
"""What a gate on vLLM costs beside a check at the same depth, with the conversation in the prefix cache and without it.

    OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1 \
        python benchmarks/vllm_gate_cost.py MODEL [--rounds 9] [--contexts 128 512] [-o FILE.json]

A gate reaches vLLM as `Guard.from_backend(VllmBackend(...), probe).gate(...)`: a request of one token, which is the
conversation, the call and the header. A check rides in a decode step of the guarding scheduler, at the end of the same
conversation and call. One process has both engines, without asynchronous scheduling. Each round measures, at each
length of conversation: decode steps with a check and without, in turn; and gates, with the control and without, with
the conversation cached (its own request was made just before; the call is new) and with an empty cache. How much of the
conversation fills no block of the cache differs between rounds. A check is what it adds to its step. Ratios are the
medians over the rounds with their 95 % bootstrap intervals. The file is written anew after each round.
"""

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from read_cost import ratio

from anydepth.atomic import write_whole
from anydepth.backends.protocol import sites_of
from anydepth.bench.timing import FILLER, seconds
from anydepth.detectors import LinearProbe
from anydepth.detectors.probe import find_shipped
from anydepth.errors import AnydepthError
from anydepth.gate import gate_calls
from anydepth.guard import Guard
from anydepth.settings import parse_settings
from anydepth.templates.call_formats import choose_format

if TYPE_CHECKING:
    from anydepth.templates.proposed_call import CallPrompt

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

CALL = {"name": "write_note", "arguments": {"text": "The tea is ready."}}
PAIRS = 12
"""Decode steps with a check, and as many without, in each round."""
GATES = [(control, cached) for control in (False, True) for cached in (True, False)]


def name_of(control: bool, cached: bool) -> str:
    """What a gate is called in the file."""
    return f"gate{' and control' if control else ''}, {'cached' if cached else 'not cached'}"


class Rounds:
    """Everything that is measured, once a round; the order is turned around each second round."""

    def __init__(self, guard: Guard, answering: Any, contexts: Sequence[int]) -> None:
        self._guard, self._answering, self._contexts = guard, answering, contexts
        self._llm: Any = getattr(guard.backend, "_llm")  # noqa: B009
        self._block: int = self._llm.llm_engine.vllm_config.cache_config.block_size
        self._tokenizer: Any = guard.template.tokenizer
        self._written = choose_format("auto", str(self._tokenizer.chat_template)) or choose_format("hermes", "")
        self._bare = len(self._call("x").prompt.question.ids) - 1
        self._filler = self._tokenizer.encode(FILLER * (2 + max(contexts) // 16), add_special_tokens=False)
        for context in contexts:  # not timed: whatever is made once
            call = self._call(self._tokenizer.decode(self._filler[: context - self._bare]))
            self._steps(call)
            self._gate(call, control=True, cached=True)

    def _call(self, said: str) -> "CallPrompt":
        return self._guard.template.call_prompt(said, CALL, written=self._written)

    def _steps(self, call: "CallPrompt") -> dict[str, float]:
        """Seconds of a decode step with a check and of one without, of an answer that goes on behind the call."""
        from vllm import SamplingParams

        engine = self._answering.llm_engine
        scheduler = engine.engine_core.engine_core.scheduler
        params = SamplingParams(max_tokens=2 * PAIRS + 4, temperature=0.0, ignore_eos=True)
        engine.add_request("answer", {"prompt_token_ids": list(call.prompt.ids)}, params)
        taken: dict[bool, list[float]] = {True: [], False: []}
        while engine.has_unfinished_requests():
            (guarded,) = scheduler._guarded.values()
            begun, due = guarded.request.num_output_tokens, guarded.next_step.name == "CHECK"
            spent = seconds(engine.step)
            if 1 < begun < 2 * PAIRS + 3:  # the last check has a step of its own
                taken[due].append(spent)
        pairs = list(zip(taken[True], taken[False], strict=False))
        assert len(pairs) >= PAIRS, f"steps are missing: {taken}"
        found = {"check step": [a for a, _ in pairs], "step": [b for _, b in pairs], "check": [a - b for a, b in pairs]}
        return {name: statistics.median(values) for name, values in found.items()}

    def _gate(self, call: "CallPrompt", *, control: bool, cached: bool) -> float:
        """Seconds of a gate."""
        from vllm import SamplingParams

        guard = self._guard
        assert self._llm.reset_prefix_cache(), "the prefix cache is in use"
        if cached:
            params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
            self._llm.generate([{"prompt_token_ids": list(call.prompt.question.ids)}], params, use_tqdm=False)
        return seconds(lambda: gate_calls(guard.backend, guard.detector, guard.config, [call], control=control))

    def measure(self, number: int) -> dict[str, float]:
        """Seconds of each part in round `number`, and the lengths of conversation and call, in tokens."""
        found: dict[str, float] = {}
        turn = 1 if number % 2 else -1
        for context in self._contexts:
            length = context - 7 * number % self._block
            call = self._call(self._tokenizer.decode(self._filler[: length - self._bare]))
            found |= {f"conversation at {context}": call.prompt.start, f"call at {context}": call.prompt.prefill}
            for kind in ("steps", "gates")[::turn]:
                if kind == "steps":
                    found |= {f"{name} at {context}": value for name, value in self._steps(call).items()}
                    continue
                for control, cached in GATES[::turn]:
                    spent = self._gate(call, control=control, cached=cached)
                    found[f"{name_of(control, cached)} at {context}"] = spent
        return found


def ratios_of(rounds: Sequence[Mapping[str, float]], contexts: Sequence[int]) -> dict[str, dict[str, float]]:
    """Each kind of gate over a check and over a step with a check; a check over a step; cached over not cached."""
    found = {}
    for context in contexts:
        gates = [name_of(*each) for each in GATES]
        pairs = [(gate, under) for under in ("check", "check step") for gate in gates]
        pairs += [("check", "step"), *((name_of(c, True), name_of(c, False)) for c in (False, True))]
        for over, under in pairs:
            values = ([each[f"{name} at {context}"] for each in rounds] for name in (over, under))
            found[f"{over} / {under} at {context}"] = ratio(*values)
    return found


def start(given: argparse.Namespace) -> tuple[Guard, Any]:
    """The engine that reads finished answers, with a guard over it, and the engine that guards answers."""
    from vllm import LLM

    from anydepth.vllm import engine_options
    from anydepth.vllm.vllm_backend import VllmBackend

    chosen: list[LinearProbe] = []

    def sites(model: Any) -> Any:
        probe = LinearProbe.load(given.probe) if given.probe else find_shipped(model)
        if probe is None:
            raise SystemExit("no probe for this model is shipped; name one with --probe")
        chosen.append(probe)
        return sites_of(probe.reads)

    options = {
        "dtype": given.dtype, "enforce_eager": True, "max_model_len": max(given.contexts) + 256, "max_num_seqs": 4,
        "block_size": given.block_size, "disable_log_stats": True, "async_scheduling": False,
    }  # fmt: skip
    backend: Any = VllmBackend(given.model, sites=sites, **options)
    table: dict[str, Any] = {"interval": 2, "doubling": False, "policy": {"name": "threshold", "threshold": 1.0}}
    if given.probe:
        table["probe"] = given.probe
    answering = LLM(model=given.model, **options, **engine_options(parse_settings({"guard": table})))
    return Guard.from_backend(backend, chosen[0]), answering


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--probe")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512], help="tokens of the conversation")
    parser.add_argument("--block-size", type=int, default=32, help="tokens per block of the KV cache; 16 needs a GPU")
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure round by round, print and write."""
    given = arguments()
    try:
        guard, answering = start(given)
        measured = Rounds(guard, answering, given.contexts)
    except AnydepthError as error:
        raise SystemExit(str(error)) from error
    import vllm

    reads: Any = guard.detector
    about = {
        "model": Path(given.model).name, "vllm": vllm.__version__, "dtype": given.dtype, "block_size": given.block_size,
        "processors": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS"),
        "reads": [str(each) for each in reads.reads],
    }  # fmt: skip
    done: list[dict[str, float]] = []
    for number in range(given.rounds):
        done.append(measured.measure(number))
        print(number + 1, json.dumps({key: round(value, 4) for key, value in done[-1].items()}), flush=True)
        if given.out:
            whole = {**about, "ratios": ratios_of(done, given.contexts), "seconds": done}
            write_whole(given.out, (json.dumps(whole, indent=1) + "\n").encode())
    for what, found in ratios_of(done, given.contexts).items():
        print(f"{what}: {found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")


if __name__ == "__main__":
    main()
