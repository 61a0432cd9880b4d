"""Ten minutes of mixed requests against one guarded vLLM engine; then the audit trail is verified.

    OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1 \
        python benchmarks/vllm_soak.py MODEL --minutes 10 --out benchmarks/vllm-soak.json

Requests differ in length, sampling, prefill, stop strings, number of choices and override of the threshold; some are
aborted; some are the demo's attack, cut at a random place. The KV cache is small, so that requests are preempted. Exits
with 1 if a released token is unchecked, an answer is missing from the audit, anything is left in the engine, or nothing
was blocked or preempted.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
import tomllib
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

WORDS = [
    "river",
    "garden",
    "engine",
    "winter",
    "colour",
    "market",
    "window",
    "planet",
    "letter",
    "stone",
    "music",
    "bridge",
]


def main() -> None:
    """Run the soak and exit with its verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--probe", help="default: the one that is shipped for the model")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--concurrent", type=int, default=12)
    parser.add_argument(
        "--blocks", type=int, default=24, help="KV blocks of 32 tokens: few, so that there is preemption"
    )
    parser.add_argument(
        "--thresholds", type=float, nargs="+", default=[0.5, 0.99, 1.0], help="each request takes one: verdicts differ"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        audit = Path(folder) / "audit.jsonl"
        soak = Soak(args, audit)
        soak.run()
        result = soak.report(audit)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    sys.exit(0 if result["ok"] else 1)


class Soak:
    """One engine under mixed load."""

    def __init__(self, args: argparse.Namespace, audit: Path) -> None:
        from vllm import LLM

        from anydepth.settings import parse_settings
        from anydepth.vllm import engine_options

        self.args, self.random = args, random.Random(args.seed)
        guard = {"interval": 10, "policy": {"name": "threshold", "threshold": 1.0}}
        guard |= {"probe": args.probe} if args.probe else {}
        settings = parse_settings({
            "guard": guard,
            "overrides": {"threshold": {"min": 0, "max": 1}, "interval": {"min": 1, "max": 50},
                          "release": ["hold", "eager"]},
            "audit": {"kind": "jsonl", "path": str(audit)},
        })  # fmt: skip
        self.llm = LLM(model=args.model, dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=8,
                       block_size=32, num_gpu_blocks_override=args.blocks, max_num_batched_tokens=512,
                       disable_log_stats=True, **engine_options(settings))  # fmt: skip
        self.engine = self.llm.llm_engine
        self.tokenizer = self.llm.get_tokenizer()
        self.attack = self._attack()
        self.ends: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self.live: set[str] = set()
        self.preempted = 0
        self._count_preemptions()

    def _attack(self) -> list[int]:
        """The mild attack of `anydepth demo`: a request, and the beginning of the answer that is forced."""
        demo = tomllib.loads((resources.files("anydepth") / "data" / "demo.toml").read_text(encoding="utf-8"))["demo"]
        chat = [{"role": "user", "content": demo["request"]}, {"role": "assistant", "content": demo["prefill"]}]
        options = {"continue_final_message": True, "tokenize": True, "return_dict": False}
        return self.tokenizer.apply_chat_template(chat, **options)

    def _count_preemptions(self) -> None:
        scheduler = self.scheduler
        original = scheduler._preempt_request

        def preempt(*args: Any, **kwargs: Any) -> None:
            self.preempted += 1
            original(*args, **kwargs)

        scheduler._preempt_request = preempt

    @property
    def scheduler(self) -> Any:
        """The engine's scheduler, in this process."""
        return self.engine.engine_core.engine_core.scheduler

    def run(self) -> None:
        """Keep the engine busy until the time is over, then let it finish."""
        deadline = time.monotonic() + 60 * self.args.minutes
        number = 0
        while time.monotonic() < deadline or self.live:
            while time.monotonic() < deadline and len(self.live) < self.args.concurrent:
                number += 1
                self._add(f"soak{number}")
            for output in self.engine.step():
                if output.finished:
                    self.live.discard(output.request_id)
                    reason = output.outputs[0].stop_reason
                    guarded = isinstance(reason, str) and reason.startswith("anydepth:")
                    self.ends["halted" if guarded else str(output.outputs[0].finish_reason)] += 1
            if self.live and self.random.random() < 0.002:
                gone = self.random.choice(sorted(self.live))
                self.engine.abort_request([gone])
                self.live.discard(gone)
                self.ends["aborted"] += 1

    def _add(self, name: str) -> None:
        from vllm import SamplingParams

        draw = self.random
        text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 60)))
        chat = [{"role": "user", "content": f"Write about: {text}"}]
        ids = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        kind = draw.choice(["plain", "plain", "harmful", "prefill", "choices", "stop", "raw", "eager"])
        sampling: dict[str, Any] = {"max_tokens": draw.randint(1, 160)}
        sampling |= draw.choice([{"temperature": 0.0}, {"temperature": 1.0, "seed": draw.randint(0, 999)}])
        guard: dict[str, Any] = {
            "interval": draw.choice([1, 5, 10, 25]),
            "threshold": draw.choice(self.args.thresholds),
        }
        if kind == "harmful":
            ids = self.attack[: len(self.attack) - draw.randint(0, 150)]
        elif kind == "prefill":
            ids = (
                ids
                + self.tokenizer(" ".join(draw.choice(WORDS) for _ in range(20)), add_special_tokens=False).input_ids
            )
        elif kind == "choices":
            sampling |= {"n": 2, "temperature": 0.9}
        elif kind == "stop":
            sampling["stop"] = [" the", "."]
        elif kind == "raw":
            ids = self.tokenizer(text).input_ids
        elif kind == "eager":
            guard["release"] = "eager"
        self.made[kind] += 1
        self.live.add(name)
        params = SamplingParams(extra_args={"anydepth": guard}, **sampling)
        self.engine.add_request(name, {"prompt_token_ids": ids}, params)

    def report(self, audit: Path) -> dict[str, Any]:
        """What the soak came to; `ok` is the verdict."""
        from anydepth.audit import read_records, verify_audit

        found = verify_audit(audit)
        held = [each for each in read_records(audit) if each["kind"] == "answer" and each["release"] == "hold"]
        unchecked = sum(
            window["stop"] - window["start"]
            for each in held for window in each["windows"]
            if window["state"] == "released" and window["checked_at"] is None
        )  # fmt: skip
        left = len(self.scheduler.requests) + len(self.scheduler._guarded) + len(self.scheduler._check_requests)
        wanted = sum(self.made.values()) + self.made["choices"]
        answers = sum(found.answers.values())
        return {
            "ok": found.ok and not unchecked and not left and not found.unfinished and answers == wanted
            and found.blocked > 0 and self.preempted > 0,
            "minutes": self.args.minutes, "requests": dict(self.made), "ends": dict(self.ends),
            "answers": dict(found.answers), "answers_wanted": wanted, "blocked": found.blocked,
            "released": found.released, "withheld": found.withheld, "unchecked_under_hold": unchecked,
            "violations": found.violations[:20], "unfinished": found.unfinished, "left_in_engine": left,
            "preemptions": self.preempted,
        }  # fmt: skip


if __name__ == "__main__":
    main()
