"""Throughput of guarded over unguarded answers inside one vLLM engine, and what a check costs the worker.

    OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1 \
        python benchmarks/vllm_overhead.py MODEL --out benchmarks/vllm-overhead.json

One process, one engine. Each round generates the same answers with and without the guard, in alternating order, so that
a slow moment of the machine hits both; the ratio is taken pair by pair, with a bootstrap interval of their median: many
short rounds say more than few long ones. The prefix cache is emptied before each, as if the prompts were new.
`arithmetic` is what the header's tokens cost a machine that is bound by compute: 1 / (1 + header / interval).
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

QUESTIONS = [
    "Explain how rainbows form.", "Write a short story about a lighthouse.", "How does a bicycle stay upright?",
    "Describe the water cycle.", "What makes bread rise?", "Tell me about the moons of Jupiter.",
    "How do I plan a vegetable garden?", "Why do leaves change colour?", "Describe a day at the sea.",
    "How does a piano make sound?", "Explain the rules of chess.", "What is a solar eclipse?",
    "How are bridges built?", "Describe how glass is made.", "What do bees do in winter?", "How does a compass work?",
]  # fmt: skip


def main() -> None:
    """Measure each number of concurrent answers and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--probe", help="default: the one that is shipped for the model")
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--interval", type=int, default=25)
    parser.add_argument("--doubling", action="store_true", help="check after 1, 2, 4, 8, 16 tokens as well")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, nargs="+", default=[7], help="for all, or one for each of --concurrent")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--compiled", action="store_true", help="leave vLLM's compilation on")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rounds = args.rounds * len(args.concurrent) if len(args.rounds) == 1 else args.rounds
    if len(rounds) != len(args.concurrent):
        parser.error(f"--rounds has {len(rounds)} numbers, --concurrent {len(args.concurrent)}; give one, or one for each")
    llm = start(args)
    groups = [measure(llm, args, count, number) for count, number in zip(args.concurrent, rounds, strict=True)]
    import vllm

    result = {
        "model": Path(args.model).name, "vllm": vllm.__version__, "machine": platform.machine(),
        "processors": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS"), "dtype": args.dtype,
        "interval": args.interval, "doubling": args.doubling, "tokens": args.tokens, "rounds": rounds,
        "header": len(scheduler(llm).setup.header_ids), "release": "hold",
        "load_average": os.getloadavg()[0], "groups": groups,
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def start(args: argparse.Namespace) -> Any:
    """An engine whose requests may go without their guard."""
    from vllm import LLM

    from anydepth.backends.vllm.launch import engine_options
    from anydepth.settings import parse_settings

    guard: dict[str, Any] = {
        "interval": args.interval, "doubling": args.doubling, "policy": {"name": "threshold", "threshold": 1.0}
    }  # fmt: skip
    if args.probe:
        guard["probe"] = args.probe
    ours = engine_options(parse_settings({"guard": guard}), allow_unguarded=True)
    return LLM(
        model=args.model, dtype=args.dtype, enforce_eager=not args.compiled, max_model_len=args.context,
        max_num_seqs=max(args.concurrent), block_size=32, disable_log_stats=True, **ours,
    )  # fmt: skip


def scheduler(llm: Any) -> Any:
    """The engine's scheduler, in this process."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def measure(llm: Any, args: argparse.Namespace, count: int, rounds: int) -> dict[str, Any]:
    """So many rounds of `count` answers at once."""
    from anydepth.evals import metrics

    generate(llm, args, count, guard=True)
    generate(llm, args, count, guard=False)
    before = llm.collective_rpc("anydepth_stats")[0]
    pairs: list[tuple[float, float]] = []
    for number in range(rounds):
        order = (True, False) if number % 2 else (False, True)
        took = {guard: generate(llm, args, count, guard=guard) for guard in order}
        pairs.append((took[True], took[False]))
    after = llm.collective_rpc("anydepth_stats")[0]
    checks = after["checks"] - before["checks"]
    ratios = [plain / guarded for guarded, plain in pairs]
    ratio = metrics.median("guarded over unguarded", ratios, "ratio")
    assert ratio.value is not None and ratio.interval is not None
    header = len(scheduler(llm).setup.header_ids)
    return {
        "concurrent": count,
        "guarded_over_unguarded": round(ratio.value, 4),
        "interval_95": [round(each, 4) for each in ratio.interval if each is not None],
        "ratios": [round(each, 4) for each in ratios],
        "arithmetic": round(1 / (1 + header / args.interval), 4),
        "unguarded_tokens_per_second": round(args.tokens * count / statistics.median(p for _, p in pairs), 2),
        "guarded_tokens_per_second": round(args.tokens * count / statistics.median(g for g, _ in pairs), 2),
        "checks": checks,
        "bookkeeping_ms_per_check": round(1000 * (after["seconds"] - before["seconds"]) / max(1, checks), 4),
        "read_out": after["read_out"], "header_ends_at_block": after["header_ends_at"],
    }


def generate(llm: Any, args: argparse.Namespace, count: int, *, guard: bool) -> float:
    """Seconds for `count` answers of the same length."""
    from vllm import SamplingParams

    extra = None if guard else {"anydepth": {"guard": False}}
    params = SamplingParams(max_tokens=args.tokens, temperature=0.0, ignore_eos=True, extra_args=extra)
    chats = [[{"role": "user", "content": QUESTIONS[n % len(QUESTIONS)]}] for n in range(count)]
    assert llm.reset_prefix_cache(), "the prefix cache is in use"
    begun = time.perf_counter()
    answers = llm.chat(chats, params, use_tqdm=False)
    seconds = time.perf_counter() - begun
    assert all(len(each.outputs[0].token_ids) == args.tokens for each in answers), "an answer was cut short"
    return seconds


if __name__ == "__main__":
    main()
