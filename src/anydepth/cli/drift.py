"""`anydepth probe drift`: what a probe is worth on altered weights of its model."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

from anydepth.backends.altered_weights import Alteration, alterations
from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.benign_answers import TrafficAnswer
from anydepth.cli.evidence import drift_table
from anydepth.cli.output import err, write_json
from anydepth.cli.shared_options import Loading, grouped
from anydepth.detectors import LinearProbe
from anydepth.errors import ConfigError, RecordError
from anydepth.fields import LABELS, label_of, text_of
from anydepth.files import check_destination
from anydepth.probes.artefact.modelcard import artefact_in, refresh
from anydepth.probes.fitting.drift import DriftComparison, DriftReading, with_drift
from anydepth.records import read_lines

if TYPE_CHECKING:
    from anydepth.guard import Guard


@grouped
def drift(
    probe: Annotated[Path, typer.Argument(metavar="PROBE", help="A probe file or folder.")],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The model that the probe was fitted on.")],
    answers: Annotated[
        Path,
        typer.Option(
            "--answers",
            metavar="FILE",
            help='Labelled answers: JSONL (or .jsonl.gz) of {"id", "prompt" or "messages", "response", "label"}, with '
            '"source" if you like.',
        ),
    ],
    altered: Annotated[
        str | None,
        typer.Option(
            "--altered", metavar="MODEL", help="The quantised checkpoint. Default: MODEL itself, with --adapter on."
        ),
    ] = None,
    output: Annotated[
        Path | None, opt.output(metavar="OUT", help="Where the probe with the new card goes. Default: PROBE itself.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as one JSON object instead.")] = False,
    *,
    loading: Loading,
) -> None:
    """Measure what a probe is worth on quantised weights of its model, or with an adapter on.

    The answers are read twice, with the model as it is and with the altered one. The difference is written into the
    probe's card, and is what a guard warns of when it binds the probe to weights altered in this way.
    """
    if altered is None and loading.adapter is None:
        raise ConfigError("nothing is altered; give the quantised checkpoint with --altered, or an adapter, or both")
    artefact = artefact_in(probe)
    out = artefact if output is None else artefact_in(output)
    check_destination(out, "-o")
    given, read = LinearProbe.load(artefact), _answers(answers)
    options = opt.GuardOptions(probe=artefact)
    plain = replace(loading, adapter=None).of(model)
    before, found = _scanned(plain, options, read)
    if found:
        raise ConfigError(f"--model {model} is altered itself: {', '.join(map(str, found))}; give the model as it was")
    after, found = _scanned(loading.of(altered or model), options, read)
    if not found:
        raise ConfigError(f"--altered {altered} is neither quantised nor has it an adapter, as far as can be seen")
    record = DriftComparison(before, after).record(Alteration.joined(found))
    new = with_drift(given, [record])
    new.save(out)
    refresh(out, new)
    if as_json:
        write_json({"probe": str(out), "drift": record})
        return
    console = Console(highlight=False)
    console.print(drift_table([record]))
    console.print(f"written to {out}", markup=False, soft_wrap=True)


def _answers(file: Path) -> list[tuple[TrafficAnswer, str]]:
    """The answers and their labels; RecordError names the first line without one."""
    found = []
    for line in read_lines(file):
        place = f"{file.name} line {line.number}"
        if line.record is None:
            raise RecordError(f"{place}: {line.error}")
        label = label_of(line.record.row, "label", LABELS, None)
        if label is None:
            raise RecordError(f"{place}: there is no label; give harmful or benign")
        found.append((TrafficAnswer(file.name, place, line.record, text_of(line.record.row, "source") or label), label))
    if lacking := [label for label in ("harmful", "benign") if label not in {each for _, each in found}]:
        raise RecordError(f"{file.name} has no {lacking[0]} answers; give answers of both labels")
    return found


def _scanned(
    model: opt.ModelOptions, options: opt.GuardOptions, answers: list[tuple[TrafficAnswer, str]]
) -> tuple[list[DriftReading], tuple[Alteration, ...]]:
    """What the guard says of each answer, and how the model's weights are altered."""
    guard = load.open_guard(model, options)
    shown = track(answers, description="scan", console=err, transient=True, disable=not err.is_terminal)
    return [_reading(guard, *each) for each in shown], alterations(guard.backend)


def _reading(guard: "Guard", answer: TrafficAnswer, label: str) -> DriftReading:
    prompt, host = answer.prompt_keys
    result = guard.scan(answer.record.messages, answer.record.response)
    about = {"id": str(answer.record.id), "group": answer.source, "label": label}
    return DriftReading.of(result, **about, prompt=prompt, host=host)
