"""Say whether a probe that is fitted on other languages too reads them better than the shipped one.

    python benchmarks/language_refit.py MODEL DIR/languages --work WORK -o RUN

Reads what the shipped probe reads (same block, tokens and means) of requests at depth 0 and of answers at depths 25, 50
and 75. Probes are fitted on the texts of one half of the requests, their strength chosen there by cross-validation over
requests, and reported on the other half. WORK keeps the states of each language, so that a killed run goes on.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anydepth import __version__
from anydepth.backends.protocol import FinishedAnswer
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.conversations.corpora import load as load_rows
from anydepth.conversations.dataset import Conversation, digest
from anydepth.detectors import LinearProbe, find_shipped
from anydepth.detectors.finished import score_finished
from anydepth.evals import estimates
from anydepth.evals.figure import Figure
from anydepth.evals.suites.languages_figures import OTHERS, lowest_threshold
from anydepth.evals.suites.languages_sets import ANSWERS, ENGLISH, REQUESTS, Counts, choose, language_of
from anydepth.intervals import separation
from anydepth.probes.recipe.pairs import half
from anydepth.templates.prompt import Prompt
from anydepth.types import Score

_SET = "polyrefuse"
"""Beginning of the sources that have harmful and harmless texts."""

DEPTHS = (25, 50, 75)
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
SHIPPED, ALONE, ALL, FEW, WITHOUT = (
    "shipped",
    "English",
    "all languages",
    "all languages, as few rows",
    "without its own language",
)


@dataclass(frozen=True, slots=True)
class Checks:
    """States of checks, one row each: `states` float `[checks, reads · hidden_size]`, the others `[checks]`."""

    states: np.ndarray
    harmful: np.ndarray
    text: np.ndarray
    prompt: np.ndarray
    language: np.ndarray
    kind: np.ndarray

    def where(self, mask: np.ndarray) -> "Checks":
        """The checks of a mask."""
        return Checks(*(getattr(self, name)[mask] for name in Checks.__slots__))


class Recorder:
    """Stands in for a probe, and keeps the states that it would score."""

    name, embeddings = "recorder", None

    def __init__(self, probe: LinearProbe) -> None:
        self.reads, self.seen = probe.reads, list[np.ndarray]()

    def score_each(self, states: np.ndarray) -> list[Score | Exception]:
        """Keep states, float `[n, reads, hidden_size]`."""
        self.seen.append(np.asarray(states, np.float32).reshape(len(states), -1))
        return [Score(0.0)] * len(states)


def sampled(rows: Sequence[Conversation], which: int, counts: Counts) -> list[Any]:
    """The texts of one half of the requests of the sets that have both labels, the same in every language."""
    mask = half([row.prompt_key for row in rows], which)
    own = [row for row, kept in zip(rows, mask, strict=True) if kept]
    return choose(sorted(own, key=lambda row: (digest(row.prompt_key), digest(row.id))), counts)


def collect(backend: TransformersBackend, probe: LinearProbe, samples: Sequence[Any], path: Path) -> Checks:
    """The checks of the texts; read from `path` if they are there."""
    if not path.exists():
        recorder = Recorder(probe)
        answers = [finished(backend, sample.row) for sample in samples]
        for begin in range(0, len(answers), 8):
            score_finished(backend, recorder, answers[begin : begin + 8])  # pyright: ignore[reportArgumentType]
        facts = [
            (sample.harmful, sample.row.id, sample.row.prompt_key, sample.language, sample.kind)
            for sample, answer in zip(samples, answers, strict=True)
            for _ in answer.depths
        ]
        harmful, text, prompt, language, kind = map(np.array, zip(*facts, strict=True))
        np.savez(path, np.concatenate(recorder.seen), harmful, text, prompt, language, kind)
    with np.load(path) as kept:
        return Checks(*(kept[name] for name in kept.files))


def finished(backend: TransformersBackend, row: Conversation) -> FinishedAnswer:
    """A request to read at depth 0, or the beginning of an answer to read behind."""
    prompt = backend.template.prompt(list(row.messages), prefill=row.response or None)
    if not row.response:
        return FinishedAnswer(prompt, (), (0,))
    answer = prompt.ids[prompt.start :][: DEPTHS[-1]]
    depths = tuple(depth for depth in DEPTHS if depth <= len(answer)) or (len(answer),)
    return FinishedAnswer(Prompt(prompt.ids[: prompt.start]), answer, depths)


def model(strength: float) -> Any:
    """A logistic regression on standardised states."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=400))


def best_strength(checks: Checks) -> float:
    """The strength that separates the texts of other requests best."""
    groups = GroupKFold(4)

    def worth(strength: float) -> float:
        made = cross_val_predict(
            model(strength),
            checks.states,
            checks.harmful,
            groups=checks.prompt,
            cv=groups,
            method="decision_function",
        )
        return float(separation(made[checks.harmful], made[~checks.harmful]))

    return max(STRENGTHS, key=worth)


def fitted(checks: Checks, strength: float | None = None) -> Any:
    """A model of the checks; without a strength, of the one that is best on them."""
    return model(strength or best_strength(checks)).fit(checks.states, checks.harmful)


def logits(probe: LinearProbe, checks: Checks) -> np.ndarray:
    """What the shipped probe makes of each check, float `[checks]`."""
    return checks.states.astype(np.float64) @ probe.weight.ravel().astype(np.float64) + probe.bias


def scored(probe: LinearProbe, train: Checks, test: Checks) -> Iterator[tuple[str, np.ndarray]]:
    """The values of the test checks by each way of fitting."""
    yield SHIPPED, logits(probe, test)
    yield ALONE, fitted(train.where(train.language == ENGLISH)).decision_function(test.states)
    languages, strength = sorted(set(train.language)), best_strength(train)
    yield ALL, fitted(train, strength).decision_function(test.states)
    one = [languages[int(digest(str(prompt)), 16) % len(languages)] for prompt in train.prompt]
    yield FEW, fitted(train.where(np.array(one) == train.language)).decision_function(test.states)
    values = np.zeros(len(test.harmful))
    for language in languages:
        mask = test.language == language
        values[mask] = fitted(train.where(train.language != language), strength).decision_function(test.states[mask])
    yield WITHOUT, values


def figures(way: str, values: np.ndarray, test: Checks) -> Iterator[Figure]:
    """AUROC and halts at 1 % of false alarms of each language; a text's value is the mean over its checks."""
    for kind in (REQUESTS, ANSWERS):
        means: dict[str, dict[bool, list[float]]] = {}
        own = test.where(test.kind == kind)
        here = values[test.kind == kind]
        for text in dict.fromkeys(own.text):
            mask = own.text == text
            language, harmful = str(own.language[mask][0]), bool(own.harmful[mask][0])
            for name in (language, *((OTHERS,) if language != ENGLISH else ())):
                means.setdefault(name, {True: [], False: []})[harmful].append(float(here[mask].mean()))
        for language in sorted(means, key=lambda name: (name != ENGLISH, name == OTHERS, name)):
            sides = means[language]
            group = {"language": language, "fitted on": way}
            yield estimates.auroc(f"auroc, {kind}", sides[True], sides[False], group)
            threshold = lowest_threshold(sides[False])
            halts = [threshold is not None and value > threshold for value in sides[True]]
            yield estimates.share(f"halted at 1 %, {kind}", halts, group)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("tables", type=Path, help="folder of the tables")
    parser.add_argument("--requests", type=int, default=24, help="requests of a language and label, in each half")
    parser.add_argument("--answers", type=int, default=16, help="answers of a language and label, in each half")
    parser.add_argument("--languages", nargs="*", default=[], help="those to read; all by default")
    parser.add_argument("--work", type=Path, required=True, help="folder for states")
    parser.add_argument("-o", "--out", type=Path, required=True, help="run folder")
    given = parser.parse_args()
    rows = [
        row
        for row in {row.id: row for row in load_rows(given.tables)}.values()
        if row.source.startswith(_SET) and language_of(row) in (given.languages or [language_of(row)])
    ]
    backend = load(given.model)
    if (probe := find_shipped(backend)) is None:
        raise SystemExit(f"no probe is shipped for {given.model}; give a model that has one")
    given.work.mkdir(parents=True, exist_ok=True)
    counts, parts = Counts(given.requests, given.answers, 0), dict[int, list[Checks]]()
    for which in (1, 0):
        samples = sampled(rows, which, counts)
        for language in dict.fromkeys(sample.language for sample in samples):
            own = [sample for sample in samples if sample.language == language]
            path = given.work / f"{which}-{language}-{given.requests}-{given.answers}.npz"
            parts.setdefault(which, []).append(collect(backend, probe, own, path))
            print(which, language, len(own), flush=True)
    train, test = (joined(parts[which]) for which in (0, 1))
    made = [each for way, values in scored(probe, train, test) for each in figures(way, values, test)]
    write(given, backend, made, {"texts fitted on": len(set(train.text)), "texts": len(set(test.text))}, rows)
    return 0


def joined(parts: Sequence[Checks]) -> Checks:
    """The checks of all parts."""
    return Checks(*(np.concatenate([getattr(part, name) for part in parts]) for name in Checks.__slots__))


def write(
    given: argparse.Namespace,
    backend: TransformersBackend,
    made: Sequence[Figure],
    sizes: Mapping[str, int],
    rows: Sequence[Conversation],
) -> None:
    """The run folder: no text of a request or an answer is in it."""
    given.out.mkdir(parents=True, exist_ok=True)
    identity, names = backend.identity, " ".join(["", "--languages", *given.languages] if given.languages else [])
    content = "\n".join(sorted(f"{row.id} {digest(row.prompt)} {digest(row.response)} {row.label}" for row in rows))
    manifest = {
        "anydepth": __version__,
        "model": {
            "name": Path(given.model).name,
            "fingerprint": identity.fingerprint,
            "dtype": str(backend.model.dtype),
        },
        "command": f"benchmarks/language_refit.py {Path(given.model).name} data/languages --work work "
        f"--requests {given.requests} --answers {given.answers}{names} -o {given.out.name}",
        "options": {"quick": False, "requests": given.requests, "answers": given.answers, "strengths": STRENGTHS},
        "data": {"languages": {"rows": len(rows), "sha256": hashlib.sha256(content.encode()).hexdigest()}},
        **sizes,
        "languages": sorted({language_of(row) for row in rows}),
    }
    summary = {"suites": {"language-refit": {"figures": [each.record() for each in made]}}}
    for name, content in (("manifest", manifest), ("summary", summary)):
        (given.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
