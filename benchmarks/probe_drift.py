#!/usr/bin/env python3
"""What a shipped probe is worth when its model's weights are quantised, or have an adapter.

    probe_drift.py MODEL --data-dir DIR --work WORK [--gguf FOLDER] [--formats all] [-o RUN] [--card PROBE]

Scans the same held-out answers with the model in every format, and compares scores and verdicts with those of bfloat16.
The answers are the half of the held-out prompts that nothing of the probe was chosen on. Each format is scanned once,
into WORK; a format that is there already is left out. With `-o`, what is in WORK is summed up into the run folder RUN
(manifest.json, summary.json), and with `--card FILE` also written into the card of that probe file.

A format of weights alone is measured by its own weights in bfloat16: each quantised layer of the library's model is fed
the identity, and what it gives is the weight that a bfloat16 model gets. Kernels for a CPU are slow or missing; what a
GPU kernel rounds otherwise is not measured.
"""

import argparse
import gc
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers

from anydepth import Guard
from anydepth.backends.altered_weights import ADAPTER, Alteration, alterations
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.conversations.corpora import load as load_conversations
from anydepth.conversations.dataset import Conversation
from anydepth.conversations.splits import balance
from anydepth.detectors import LinearProbe, find_shipped
from anydepth.evals.context import probe_digest
from anydepth.evals.estimates import share
from anydepth.evals.figure import Figure, Summary
from anydepth.evals.instruments.tuning import TrainingExample, TuneOptions, example, trainable, tune
from anydepth.files import public_name
from anydepth.journal import digest_of
from anydepth.probes.fitting.drift import DriftComparison, DriftReading, with_drift
from anydepth.probes.recipe.choices import REPORTED
from anydepth.probes.recipe.pairs import half
from anydepth.probes.recipe.recipe import gather, read_recipe
from anydepth.probes.states.manifest import dtype_of, package_versions

SETS = ("long harmful", "harmful under harmless", "jailbreaks", "benign", "harmless under others", "XSTest safe")
PAIRS = (("long harmful", "benign"), ("harmful under harmless", "harmless under others"), ("jailbreaks", "benign"))
REFERENCE = "bfloat16"
TITLE = "Quantised and adapted weights: what the probe is still worth"
PACKAGES = (
    *("anydepth", "numpy", "torch", "transformers", "peft"),
    *("optimum-quanto", "torchao", "bitsandbytes", "gguf", "gptqmodel", "optimum"),
)
NOTES = (
    "The half of the held-out prompts that no candidate was chosen on; the threshold is the shipped one.",
    "Differences are paired with bfloat16; their intervals, and those of AUROC, come from drawing prompts anew.",
    "4-bit of torchao has a scale for each 64 weights, of quanto for each 128; bitsandbytes is NF4; adapters are LoRA.",
    "Each quantised layer was fed the identity; what it gave is the weight of a bfloat16 model that was measured.",
)
ADAPTERS = {f"LoRA, {steps} steps": steps for steps in (10, 40)}
SOURCES = ("dolly*",)
CALIBRATION, LONGEST = 32, 128
"""Harmless answers that GPTQ is calibrated on, and tokens of each at most, its prompt included."""
OF_GPTQ = f"GPTQ has a scale for each 128 weights; it saw {CALIBRATION} harmless answers of at most {LONGEST} tokens."


def torchao(name: str, **options: Any) -> transformers.TorchAoConfig:
    """A config of torchao's; its package is needed for its own formats only."""
    from torchao import quantization

    return transformers.TorchAoConfig(getattr(quantization, name)(**options))


def int4_of_torchao() -> transformers.TorchAoConfig:
    """Int4 weights with a scale for each 64: their number divides the widths of the models."""
    from torchao.quantization.granularity import PerGroup

    return torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=PerGroup(64))


QUANTISED: Mapping[str, Callable[[], Any]] = {
    "8-bit (torchao)": lambda: torchao("Int8WeightOnlyConfig"),
    "8-bit (quanto)": lambda: transformers.QuantoConfig(weights="int8"),
    "4-bit (torchao)": int4_of_torchao,
    "4-bit (quanto)": lambda: transformers.QuantoConfig(weights="int4"),
    "4-bit (bitsandbytes)": lambda: transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    ),
}
GPTQ = "4-bit (gptq)"
FROM_GGUF = {f"{name[1]}-bit (gguf {name})": f"{name}.gguf" for name in ("Q8_0", "Q4_K_M", "Q4_0")}
FORMATS = (REFERENCE, "float32", *QUANTISED, GPTQ, *FROM_GGUF, *ADAPTERS)


def gptq(examples: Sequence[TrainingExample]) -> transformers.GPTQConfig:
    """GPTQ with the library's own options, a scale for each 128 weights among them, calibrated on `examples`."""
    rows: Any = [{"input_ids": [[*each.ids]], "attention_mask": [[1] * len(each.ids)]} for each in examples]
    return transformers.GPTQConfig(bits=4, dataset=rows, backend="gptq_torch")


def dense(quantised: TransformersBackend, plain: TransformersBackend) -> int:
    """Give `plain` the weights of the linear layers of `quantised`, whatever library keeps them; how many differ."""
    layers = dict(plain.model.named_modules())
    changed = 0
    with torch.no_grad():
        for name, layer in quantised.model.named_modules():
            weight = getattr(layers.get(name), "weight", None)
            if not isinstance(layers.get(name), torch.nn.Linear) or name == "lm_head":
                continue
            identity = torch.eye(weight.shape[1], dtype=weight.dtype)
            bias, layer.bias = layer.bias, None
            found = torch.cat([layer(part) for part in identity.split(512)]).T
            layer.bias = bias
            changed += int((found != weight).any())
            weight.copy_(found)
    return changed


def held_out(data: Path, answers: int) -> list[tuple[str, Conversation]]:
    """Answers of the half of the held-out prompts that nothing was chosen on, about as many of each set."""
    rows = []
    for each in gather(read_recipe(), data=data):
        if each.part.name not in SETS:
            continue
        kept = half([row.prompt_key for row in each.conversations], REPORTED)
        mine = [row for row, keep in zip(each.conversations, kept, strict=True) if keep]
        sources = len({row.source for row in mine})
        chosen = balance(mine, per_source=-(-answers // sources)).kept
        rows += [(each.part.name, row) for row in chosen]
    return sorted(rows, key=lambda row: SETS.index(row[0]))


def scanned(
    backend: TransformersBackend, probe: LinearProbe, rows: Sequence[tuple[str, Conversation]], words: int
) -> list[DriftReading]:
    """What the guard says of each answer, cut after so many words."""
    guard = Guard.from_backend(backend, probe)
    found = []
    for number, (name, row) in enumerate(rows):
        text = " ".join(row.response.split(" ")[:words])
        result = guard.scan([*map(dict, row.messages)], text)
        about = {"id": f"{name} {number}", "group": name, "label": str(row.label)}
        found.append(DriftReading.of(result, **about, prompt=row.prompt_key, host=row.host_key))
    return found


def opened(name: str, args: argparse.Namespace, held: Sequence[Conversation]) -> tuple[TransformersBackend, str]:
    """The model in a format, in a form that is fast here, and what `alterations` says of the library's own."""
    if name in (REFERENCE, "float32"):
        return load(args.model, dtype=name), ""
    if name in FROM_GGUF:
        backend = load(args.model, dtype="bfloat16", gguf_file=str((args.gguf / FROM_GGUF[name]).absolute()))
        return backend, str(*alterations(backend))
    plain = load(args.model, dtype="bfloat16")
    rows = trainable(load_conversations("probe_train", data=args.data_dir), held, label="benign", sources=SOURCES)
    if name in (*QUANTISED, GPTQ):
        found = (each for row in rows if (each := example(plain, row, LONGEST)))
        config = gptq([*islice(found, CALIBRATION)]) if name == GPTQ else QUANTISED[name]()
        quantised = load(args.model, dtype="bfloat16", quantization_config=config)
        said = str(*alterations(quantised))
        if args.native:
            return quantised, said
        print(name, said, dense(quantised, plain), "layers differ", flush=True)
        return plain, said
    steps = ADAPTERS[name]
    options = TuneOptions(steps=(steps,))  # a longer training goes on from here
    examples = [each for row in rows if (each := example(plain, row, options.longest))]
    (made,) = tune(plain, examples, options, args.work / "adapters")
    backend = load(args.model, dtype="bfloat16", adapter=made.folder)
    print(name, len(examples), "examples, loss", made.loss, alterations(backend), flush=True)
    return backend, f"{ADAPTER} ({name}, rank {options.rank}, harmless answers)"


def scan_formats(args: argparse.Namespace) -> None:
    """Scan in each format that is asked for and not in WORK yet."""
    rows = held_out(args.data_dir, args.answers)
    shape = {"answers": args.answers, "words": args.words, "of": [[name, row.prompt_key] for name, row in rows]}
    for name in args.formats:
        path = args.work / f"{name.replace(' ', '-')}.json"
        if path.exists():
            continue
        begun = time.monotonic()
        backend, said = opened(name, args, [row for _, row in rows])
        probe = LinearProbe.load(args.probe) if args.probe else find_shipped(backend)
        assert probe is not None, "no probe is shipped for this model; give --probe"
        found = scanned(backend, probe, rows, args.words)
        facts = {
            "format": name,
            "weights": said,
            "dtype": dtype_of(backend),
            "probe": probe_digest(probe),
            "seconds": round(time.monotonic() - begun),
            "shape": shape,
            "readings": [asdict(each) for each in found],
        }
        path.write_text(json.dumps(facts), encoding="utf-8")
        print(name, len(found), "answers,", facts["seconds"], "s", flush=True)
        del backend
        gc.collect()


def read_work(work: Path) -> dict[str, dict[str, Any]]:
    """What was scanned, by format in the order of `FORMATS`; of the same answers with the same probe."""
    found = {}
    for name in FORMATS:
        path = work / f"{name.replace(' ', '-')}.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    assert len({json.dumps([each["shape"], each["probe"]]) for each in found.values()}) == 1, "other answers or probe"
    return found


def readings(found: Mapping[str, Any]) -> list[DriftReading]:
    """The readings of a file in WORK."""
    return [DriftReading(**{**each, "scores": tuple(each["scores"])}) for each in found["readings"]]


def altered(facts: Mapping[str, Any]) -> Alteration:
    """What the weights of a file in WORK are, as they are called in the table."""
    kind, _, how = (facts["weights"] or f"{facts['format']} (plain)").rstrip(")").partition(" (")
    return Alteration(kind, how)


def shown(hits: int, answers: int) -> list[bool]:
    """So many hits among so many answers."""
    return [True] * hits + [False] * (answers - hits)


def figures(comparison: DriftComparison, record: Mapping[str, Any]) -> Iterator[Figure]:
    """The figures of one format."""
    weights = {"weights": record["weights"].removesuffix(" (plain)")}
    sides = {f"all {'harmless' if name == 'benign' else name}": each for name, each in record["sides"].items()}
    for name, halted in {**sides, **record["sets"]}.items():
        group = {**weights, "of": name}
        count, ends = halted["answers"], (halted["interval"][0], halted["interval"][1])
        yield share("halted", shown(halted["halted"], count), group)
        yield Figure("halting change", halted["difference"], ends, count, "share", group)
    for harmful, benign in PAIRS:
        found = comparison.auroc(harmful, benign)
        group = {**weights, "of": f"{harmful} against {benign}"}
        count = sum(each.group in (harmful, benign) for each in comparison.before)
        yield Figure("auroc", found["after"]["auroc"], tuple(found["after"]["interval"]), count, "auroc", group)
        yield Figure("auroc difference", found["difference"], tuple(found["interval"]), count, "auroc", group)
    changed = record["verdicts_changed"]
    yield share("verdicts changed", shown(changed["halted"], changed["answers"]), {**weights, "of": "all answers"})
    for name, value in record["score_difference"].items():
        yield Figure("score difference", value, None, 0, "score", {**weights, "of": name})


def sum_up(args: argparse.Namespace) -> None:
    """Write the run folder, and the card of the probe file that is given."""
    found = read_work(args.work)
    before = readings(found[REFERENCE])
    made, records = [], []
    for each in found.values():
        comparison = DriftComparison(before, readings(each))
        record = comparison.record(altered(each))
        made += figures(comparison, record)
        records += [{**record, "reference": REFERENCE}] if each["weights"] else []
    notes = [OF_GPTQ] if GPTQ in found else []
    notes += [f"{name}: scanned in {each['seconds']} s" for name, each in found.items()]
    summary = Summary("drift", TITLE, "not in the paper", tuple(made), notes=(*NOTES, *notes))
    args.out.mkdir(parents=True, exist_ok=True)
    manifest = {
        "anydepth": package_versions("anydepth")["anydepth"],
        "model": {"name": public_name(args.model), "dtype": found[REFERENCE]["dtype"]},
        "probe": {"digest": found[REFERENCE]["probe"]},
        "options": {"quick": False, "answers": args.answers, "words": args.words, "formats": list(found)},
        "command": f"benchmarks/probe_drift.py {public_name(args.model)} --data-dir DIR --work WORK --gguf GGUF "
        f"--formats '{';'.join(found)}' --answers {args.answers} --words {args.words} -o {args.out.name}",
        "data": {"held-out answers": {"rows": len(before), "sha256": digest_of(found[REFERENCE]["shape"])}},
        "versions": package_versions(*PACKAGES),
        "machine": {"platform": platform.platform(), "python": platform.python_version(), "cpus": os.cpu_count()},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for name, content in (("manifest", manifest), ("summary", {"suites": {"drift": summary.record()}})):
        (args.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if args.card:
        with_drift(LinearProbe.load(args.card), records).save(args.card)


def main() -> None:
    """Scan what is asked for, or sum up what was scanned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--probe", type=Path, help="instead of the shipped one")
    parser.add_argument("--gguf", type=Path, default=Path(), help="folder with Q8_0.gguf, Q4_K_M.gguf and Q4_0.gguf")
    parser.add_argument("--formats", type=lambda text: text.split(";"), help="separated by `;`; `all` is every one")
    parser.add_argument("--native", action="store_true", help="run quantised layers themselves, not their weights")
    parser.add_argument("--answers", type=int, default=20, help="answers of each set")
    parser.add_argument("--words", type=int, default=100, help="words of an answer at most")
    parser.add_argument("--card", type=Path, help="a probe file whose card is told the drift")
    parser.add_argument("-o", "--out", type=Path, help="the run folder: sum up")
    args = parser.parse_args()
    if args.formats:
        args.formats = FORMATS if args.formats == ["all"] else args.formats
        args.work.mkdir(parents=True, exist_ok=True)
        scan_formats(args)
    if args.out:
        sum_up(args)


if __name__ == "__main__":
    main()
