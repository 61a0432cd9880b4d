#!/usr/bin/env python3
"""Safety Tokens as a reward: three rewards for harmful requests, each trained on with several seeds, then compared.

    python -m benchmarks.reward_training MODEL --judge JUDGE --data-dir DIR --work WORK -o RUN

with PYTHONPATH=src:. The arms differ in the reward for answers to harmful requests alone:

    tokens   `anydepth.reward.SafetyReward`: a probe on the last Safety Token, read through the frozen base weights
    mean     the same with a probe on the mean state of the answer's tokens, fitted on the same answers
    text     1 - the score of the package's text judge
    policy   as `tokens`, read through the weights that are trained (only with --arms)

A harmless request is rewarded alike in all arms: 1 for an answer that does not refuse and has 16 tokens or more.
Policies are LoRA adapters, trained by TRL's GRPO without a KL penalty. Everything that is made goes into WORK, answers
included: they may be harmful. What is in WORK is not made again, and `--only NAME` makes one part in a process of its
own: `probes`, `before-SEED`, `ARM-SEED`, `judge`, `gather` (which takes the policies that are measured so far). RUN
gets `manifest.json` and `summary.json`, without any text.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anydepth.backends.transformers import TransformersBackend, load
from anydepth.conversations import corpora
from anydepth.detectors import LinearProbe
from anydepth.errors import ConfigError
from anydepth.evals import open_judge
from anydepth.evals.arms.model_as_judge import AskedModel
from anydepth.files import write_whole
from anydepth.probes.states.manifest import package_versions
from benchmarks import reward_training_data as data
from benchmarks.reward_training_figures import summary
from benchmarks.reward_training_measure import held_out_scores, measure
from benchmarks.reward_training_policy import PolicyOptions, reward_of, train, with_adapter

BEFORE = "before"
TABLES = (
    "probe_train",
    "probe_validation",
    "prompts_advbench",
    "prompts_strongreject",
    "prompts_xstest",
    "anydepth:benign_prompts",
)
_PACKAGES = ("anydepth", "numpy", "scikit-learn", "torch", "transformers", "peft", "trl")


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is compared, on which data, and where what is made is kept."""

    model: str
    data_dir: Path
    work: Path
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    policy: PolicyOptions
    sizes: data.DataOptions

    @property
    def names(self) -> list[str]:
        """The parts that train or measure a policy."""
        return [f"{arm}-{seed}" for arm in (BEFORE, *self.arms) for seed in self.seeds]

    @property
    def settings(self) -> dict[str, Any]:
        """What every part in `work` depends on."""
        return {"model": Path(self.model).name, "policy": asdict(self.policy), "sizes": asdict(self.sizes)}

    def check(self) -> None:
        """Note the settings in `work`; ConfigError if it was begun with others."""
        path, now = self.work / "settings.json", json.loads(json.dumps(self.settings))
        if path.exists() and (before := _read(path)) != now:
            raise ConfigError(f"{self.work} was begun with {before}, not {now}; give another --work")
        self.work.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(now, indent=1) + "\n")

    def load(self) -> TransformersBackend:
        """The model, in bfloat16."""
        return load(self.model, dtype="bfloat16")


def make_probes(experiment: Experiment) -> None:
    """Fit both probes, and keep the labelled answers that they are measured on."""
    work = experiment.work
    if (work / "held_out.json").exists():
        return
    found = data.requests(experiment.data_dir, experiment.sizes)
    backend = experiment.load()
    probes, stored = data.fit_probes(backend, experiment.data_dir, found, experiment.sizes, work)
    for name, probe in probes.items():
        probe.save(work / f"{name}.safetensors")
    _write(work / "held_out.json", [each.record() for each in stored])


def make_policy(experiment: Experiment, name: str) -> None:
    """Train the policy of one arm and seed, and measure it; `before-SEED` measures the base."""
    work, (arm, _, number) = experiment.work, name.rpartition("-")
    if (work / f"{name}.json").exists():
        return
    begun, seed, options = time.monotonic(), int(number), experiment.policy
    found = data.requests(experiment.data_dir, experiment.sizes)
    judge = open_judge("text", tables=lambda table: corpora.load(table, data=experiment.data_dir), folder=work, seed=0)
    probes = {each: LinearProbe.load(work / f"{each}.safetensors") for each in ("tokens", "mean")}
    backend = experiment.load()
    tokenizer = backend.tokenizer
    model = with_adapter(backend.model, options.rank, seed)
    logged: list[dict[str, float]] = []
    if arm != BEFORE:
        rows = data.training_rows(found, seed, options.steps, options.prompts)
        logged = train(model, tokenizer, reward_of(arm, model, tokenizer, probes, judge), rows, options, seed)
    trained = time.monotonic() - begun
    asked = {"harmful": found.harmful, "harmless": found.harmless}
    records, texts = measure(model, tokenizer, probes, judge, asked, tokens=options.tokens, seed=seed)
    stored = [data.Labelled(**each) for each in _read(work / "held_out.json")]
    held_out = held_out_scores(model, tokenizer, probes, stored)
    _write(work / f"texts-{name}.json", texts)
    seconds = {"training": round(trained, 1), "all": round(time.monotonic() - begun, 1)}
    found_here = {"arm": arm, "seed": seed, "seconds": seconds, "steps": logged, "answers": records}
    _write(work / f"{name}.json", {**found_here, "held_out": held_out})


def make_judgements(experiment: Experiment, judge: str) -> None:
    """Ask a model that is no arm's reward about the answers to harmful requests, and about the labelled ones.

    The policies that are there are judged; those that come later are when this is called again.
    """
    path = experiment.work / "judge.json"
    before = _read(path) if path.exists() else {"judge": Path(judge).name, "answers": {}}
    found = data.requests(experiment.data_dir, experiment.sizes)
    stored = _read(experiment.work / "held_out.json")
    asked: AskedModel | None = None
    wanted: dict[str, list[tuple[str, str]]] = {"held_out": [(each["prompt"], each["response"]) for each in stored]}
    for name in experiment.names:
        if (texts := experiment.work / f"texts-{name}.json").exists():
            wanted[name] = list(zip((row.prompt for row in found.harmful), _read(texts), strict=False))
    for name, pairs in wanted.items():
        if name in before["answers"]:
            continue
        asked = asked or AskedModel.load(judge, dtype="bfloat16")
        scores = asked.scores([asked.about(*pair) for pair in pairs])
        if errors := [each for each in scores if isinstance(each, Exception)]:
            raise errors[0]
        before["answers"][name] = [float(each.value) for each in scores]  # pyright: ignore[reportAttributeAccessIssue]
        _write(path, before)


def gather(experiment: Experiment, out: Path, command: str) -> None:
    """Write the run folder from what is in `work`: the policies that are measured; the judge may lack some of them.

    Raises:
        ConfigError: No policy of an arm is measured yet.
    """
    judged = _read(experiment.work / "judge.json")
    there = [name for name in experiment.names if (experiment.work / f"{name}.json").exists()]
    runs = [
        _with_ascii(_read(experiment.work / f"{name}.json"), experiment.work / f"texts-{name}.json") for name in there
    ]
    if missing := {BEFORE, *experiment.arms} - {run["arm"] for run in runs}:
        raise ConfigError(f"no policy of {', '.join(sorted(missing))} is measured yet; make it first")
    stored = [data.Labelled(**each) for each in _read(experiment.work / "held_out.json")]
    made = summary(runs, stored, judged, asdict(experiment.policy))
    probe = LinearProbe.load(experiment.work / "tokens.safetensors")
    identity = probe.card.model
    manifest = {
        "anydepth": package_versions("anydepth").get("anydepth"),
        "model": {
            "name": Path(identity.name).name,
            "revision": identity.revision,
            "fingerprint": identity.fingerprint,
            "layers": identity.num_layers,
            "hidden_size": identity.hidden_size,
            "dtype": "bfloat16",
        },
        "probe": {
            "reads": [str(read) for read in probe.reads],
            "policy": None,
            "sources": [str(source) for source in probe.card.sources],
            "given": True,
        },
        "options": {"quick": False, "policies": there, **experiment.settings},
        "judge": judged["judge"],
        "command": command,
        "versions": package_versions(*_PACKAGES),
        "machine": {"platform": platform.platform(), "python": platform.python_version(), "cpus": os.cpu_count()},
        "begun": datetime.fromtimestamp((experiment.work / "settings.json").stat().st_mtime, UTC).isoformat(
            timespec="seconds"
        ),
        "data": dict(data.tables(experiment.data_dir, TABLES)),
        "suites": {made.suite: {"seconds": round(sum(run["seconds"]["all"] for run in runs), 1)}},
    }
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "manifest.json", manifest)
    _write(out / "summary.json", {"suites": {made.suite: made.record()}})


def _with_ascii(run: dict[str, Any], texts: Path) -> dict[str, Any]:
    """The run with whether each answer has ASCII characters alone, `ascii`: a sign of what language it is in."""
    rows = [{**row, "ascii": text.isascii()} for row, text in zip(run["answers"], _read(texts), strict=True)]
    return {**run, "answers": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments; make what is missing, then the run folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--judge", required=True, help="a chat model that is asked about the answers; no arm's reward")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made, answers included")
    parser.add_argument("--arms", nargs="+", choices=data.ARMS, default=["tokens", "mean", "text"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    for name, value in asdict(PolicyOptions()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    for name in ("answers", "held_out", "evaluated"):
        value = getattr(data.DataOptions(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--only", help="make this part and nothing else")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the run folder")
    args = parser.parse_args(arguments)
    policy = PolicyOptions(**{name: getattr(args, name) for name in asdict(PolicyOptions())})
    sizes = data.DataOptions(answers=args.answers, held_out=args.held_out, evaluated=args.evaluated)
    experiment = Experiment(args.model, args.data_dir, args.work, tuple(args.arms), tuple(args.seeds), policy, sizes)
    experiment.check()
    parts: Mapping[str, Any] = {
        "probes": lambda: make_probes(experiment),
        **{name: (lambda name=name: make_policy(experiment, name)) for name in experiment.names},
        "judge": lambda: make_judgements(experiment, args.judge),
        "gather": lambda: gather(experiment, args.out, _command(args)),
    }
    if args.only and args.only not in parts:
        raise ConfigError(f"there is no part {args.only!r}; choose one of {', '.join(parts)}")
    for name in [args.only] if args.only else parts:
        print(datetime.now(UTC).strftime("%H:%M:%S"), name, flush=True)
        parts[name]()


def _command(args: argparse.Namespace) -> str:
    """The command line, without the folders of this machine."""
    numbers = [f"--{name.replace('_', '-')} {getattr(args, name)}" for name in asdict(PolicyOptions())]
    numbers += [f"--{name.replace('_', '-')} {getattr(args, name)}" for name in ("answers", "held_out", "evaluated")]
    return (
        f"python -m benchmarks.reward_training {Path(args.model).name} --judge {Path(args.judge).name} "
        f"--data-dir data --work work --arms {' '.join(args.arms)} --seeds {' '.join(map(str, args.seeds))} "
        f"{' '.join(numbers)} -o {args.out.name}"
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
