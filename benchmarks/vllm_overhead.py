"""Throughput of guarded over unguarded answers inside one vLLM engine, and what a check costs the worker.

    OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1 \
        python benchmarks/vllm_overhead.py MODEL --out benchmarks/vllm-overhead.json

One process, two engines: vLLM as it is and vLLM with the guard, both without asynchronous scheduling. Each round gives
both the same requests and lets them take a step each in turn, so that a slow moment of the machine, however short, hits
both. Throughput is tokens over the sum of an engine's steps; the ratio is taken round by round, with a bootstrap
interval of their median. The prefix cache is emptied before each, as if the prompts were new. `arithmetic` is what the
header's tokens cost a machine that is bound by compute: 1 / (1 + header / interval).

With --asynchronous both engines schedule a step ahead. Then each runs a round to its end before the other, since the
steps of one would hide those of the other. vLLM switches this off on a CPU; here it stays on there, too.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anydepth.extras import require

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
    parser.add_argument("--asynchronous", action="store_true", help="asynchronous scheduling, in both engines")
    parser.add_argument("--memory", type=float, help="share of the GPU's memory for each of the two engines, e.g. 0.4")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.asynchronous:
        keep_asynchronous()
    rounds = args.rounds * len(args.concurrent) if len(args.rounds) == 1 else args.rounds
    if len(rounds) != len(args.concurrent):
        parser.error(
            f"--rounds has {len(rounds)} numbers, --concurrent {len(args.concurrent)}; give one, or one for each"
        )
    require("scipy.stats", extra="fit")  # for the intervals, at the end
    plain, guarded = start(args, guard=False), start(args, guard=True)
    groups = [
        measure(plain, guarded, args, count, number) for count, number in zip(args.concurrent, rounds, strict=True)
    ]
    import vllm

    result = {
        "model": Path(args.model).name, "vllm": vllm.__version__, "machine": platform.machine(),
        "processors": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS"), "dtype": args.dtype,
        "interval": args.interval, "doubling": args.doubling, "tokens": args.tokens, "rounds": rounds,
        "header": len(scheduler(guarded).setup.header_ids), "release": "hold", "asynchronous": args.asynchronous,
        "second_runner": scheduler(guarded).vllm_config.use_v2_model_runner,
        "load_average": os.getloadavg()[0], "groups": groups,
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def keep_asynchronous() -> None:
    """Let an engine on a CPU schedule asynchronously, which vLLM's platform switches off there."""
    from vllm.platforms.cpu import CpuPlatform

    update: Any = CpuPlatform.check_and_update_config.__func__

    def keeping(cls: Any, config: Any) -> None:
        wanted = config.scheduler_config.async_scheduling
        update(cls, config)
        config.scheduler_config.async_scheduling = wanted

    CpuPlatform.check_and_update_config = classmethod(keeping)


def start(args: argparse.Namespace, *, guard: bool) -> Any:
    """An engine in this process."""
    from vllm import LLM

    from anydepth.settings import parse_settings
    from anydepth.vllm import engine_options

    ours: dict[str, Any] = {} if args.memory is None else {"gpu_memory_utilization": args.memory}
    if guard:
        table: dict[str, Any] = {
            "interval": args.interval, "doubling": args.doubling, "policy": {"name": "threshold", "threshold": 1.0}
        }  # fmt: skip
        if args.probe:
            table["probe"] = args.probe
        ours |= engine_options(parse_settings({"guard": table}))
    return LLM(
        model=args.model, dtype=args.dtype, enforce_eager=not args.compiled, max_model_len=args.context,
        max_num_seqs=max(args.concurrent), block_size=32, disable_log_stats=True,
        async_scheduling=args.asynchronous, **ours,
    )  # fmt: skip


def scheduler(llm: Any) -> Any:
    """The engine's scheduler, in this process."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def measure(plain: Any, guarded: Any, args: argparse.Namespace, count: int, rounds: int) -> dict[str, Any]:
    """So many rounds of `count` answers at once."""
    from anydepth.evals import estimates

    race([plain, guarded], args, count)
    before = guarded.collective_rpc("anydepth_stats")[0]
    pairs = [race([plain, guarded], args, count) for _ in range(rounds)]
    after = guarded.collective_rpc("anydepth_stats")[0]
    checks = after["checks"] - before["checks"]
    ratios = [without / with_guard for without, with_guard in pairs]
    ratio = estimates.median("guarded over unguarded", ratios, "ratio")
    assert ratio.value is not None and ratio.interval is not None
    header = len(scheduler(guarded).setup.header_ids)
    tokens = args.tokens * count
    return {
        "concurrent": count,
        "guarded_over_unguarded": round(ratio.value, 4),
        "interval_95": [round(each, 4) for each in ratio.interval if each is not None],
        "ratios": [round(each, 4) for each in ratios],
        "arithmetic": round(1 / (1 + header / args.interval), 4),
        "unguarded_tokens_per_second": round(tokens / statistics.median(without for without, _ in pairs), 2),
        "guarded_tokens_per_second": round(tokens / statistics.median(with_guard for _, with_guard in pairs), 2),
        "checks": checks,
        "bookkeeping_ms_per_check": round(1000 * (after["seconds"] - before["seconds"]) / max(1, checks), 4),
        "read_out": after["read_out"],
        "header_ends_at_block": after["header_ends_at"],
    }


def race(llms: Sequence[Any], args: argparse.Namespace, count: int) -> list[float]:
    """Seconds that each engine's steps took for `count` answers of the same length.

    They take a step each in turn; with asynchronous scheduling one runs to its end before the other.
    """
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=args.tokens, temperature=0.0, ignore_eos=True)
    engines, seconds, told = [llm.llm_engine for llm in llms], [0.0] * len(llms), [0] * len(llms)
    for llm, engine in zip(llms, engines, strict=True):
        assert llm.reset_prefix_cache(), "the prefix cache is in use"
        tokenizer = llm.get_tokenizer()
        for n in range(count):
            chat = [{"role": "user", "content": QUESTIONS[n % len(QUESTIONS)]}]
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
            engine.add_request(f"answer{n}", {"prompt_token_ids": ids}, params)
    while any(engine.has_unfinished_requests() for engine in engines):
        for place, engine in enumerate(engines):
            while engine.has_unfinished_requests():
                begun = time.perf_counter()
                outputs = engine.step()
                seconds[place] += time.perf_counter() - begun
                told[place] += sum(len(each.outputs[0].token_ids) for each in outputs if each.finished)
                if not args.asynchronous:
                    break
    assert told == [args.tokens * count] * len(llms), f"answers were cut short: {told}"
    return seconds


if __name__ == "__main__":
    main()
