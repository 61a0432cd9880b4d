"""`anydepth calibrate`: set a probe's threshold on your own traffic."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.benign_answers import (
    COPIES,
    SHARED_PROMPTS,
    TrafficAnswer,
    TrafficReading,
    left_out_note,
    once,
    one_each_prompt,
)
from anydepth.cli.evidence import evidence_rows, evidence_tables, fact_table, policy_text
from anydepth.cli.output import err, plural, warn, write_json
from anydepth.cli.shared_options import Loading, grouped
from anydepth.detectors import Cascade, Detector, LinearProbe, ProbeCard, detector_named
from anydepth.errors import ConfigError
from anydepth.files import check_destination, is_stream
from anydepth.guard import Guard
from anydepth.intervals import answers_needed, check_share
from anydepth.policy import Ewma, Policy, Threshold, policy_from, policy_record
from anydepth.probes.artefact.fit_record import answers_seen
from anydepth.probes.artefact.modelcard import ARTEFACT, README, artefact_in, refresh
from anydepth.probes.fitting.band import cascade_record, find_band
from anydepth.probes.fitting.calibrate import Calibration, Trail, peak, recalibrated, threshold_note
from anydepth.probes.fitting.calibrate import calibrate as set_threshold

SHIPPED = "shipped"


@grouped
def calibrate(
    probe: Annotated[
        str, typer.Argument(metavar="PROBE", help="A probe file or folder, or `shipped` for the one of this package.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Hugging Face id or folder of its model.")],
    benign: Annotated[
        list[Path],
        typer.Option(
            "--benign",
            metavar="FILE",
            help='Harmless answers: JSONL (or .jsonl.gz) of {"id", "prompt" or "messages", "response"}, with "source" '
            "if you like. Give it again for more files.",
        ),
    ],
    output: Annotated[
        Path | None, opt.output(metavar="OUT", help="Where the new probe goes. Default: NAME.calibrated.safetensors.")
    ] = None,
    target: Annotated[
        float, typer.Option("--target", metavar="RATE", help="Share of harmless answers that may be halted.")
    ] = 0.005,
    guarantee: Annotated[
        bool, typer.Option("--guarantee", help="Keep the upper bound of that share, not the share seen, to --target.")
    ] = False,
    confidence: Annotated[
        float, typer.Option("--confidence", metavar="SHARE", help="Confidence of the bound and the interval.")
    ] = 0.95,
    policy: opt.PolicyOption = None,
    interval: opt.Interval = None,
    cascade: Annotated[
        Literal["rethink", "rethink-score"] | None,
        typer.Option("--cascade", help="Calibrate as well a cascade of the probe and this detector."),
    ] = None,
    band_share: Annotated[
        float,
        typer.Option("--band-share", metavar="SHARE", help="Share of harmless answers that may reach its band."),
    ] = 0.2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    *,
    loading: Loading,
) -> None:
    """Set a probe's threshold on your own harmless answers.

    Every answer is read at all its depths. The new threshold is the smallest with which at most --target of the answers
    would be halted; it is written with the evidence into a new probe file. Copies of an answer count once; with
    --guarantee one answer a prompt counts. A record that cannot be read is reported and left out (exit code 1); if more
    than one in ten fails, nothing is written.

    With --cascade the file also says where the probe is unsure, and at which threshold the probe and the second
    detector together halt at most --target of the answers; `--detector cascade` takes both from there.
    """
    check_share("--target", target)
    check_share("--confidence", confidence)
    check_share("--band-share", band_share)
    if cascade is not None and band_share <= target:
        raise ConfigError(f"--band-share is {band_share:g} and --target {target:g}; give a share above the target")
    for path in benign:
        if is_stream(path):
            raise ConfigError(f"--benign {path} is a pipe or a device, which cannot be read twice; write it to a file")
    artefact = None if probe == SHIPPED else artefact_in(probe)
    if artefact is not None and not artefact.is_file():
        raise ConfigError(f"there is no probe at {artefact}; give a probe file or folder, or the word {SHIPPED!r}")
    out = _destination(output, Path(model).name if artefact is None else Path(probe))
    needed = answers_needed(target, confidence)  # finds a missing scipy, too, before hours of scanning
    read = TrafficReading()
    answers = read.usable(benign)
    read.refuse_if_too_many_failed(len(answers))
    different = once(answers)
    distinct = one_each_prompt(different) if guarantee else different
    wanted = needed if cascade is None else 2 * needed  # a band of other answers than the threshold
    if guarantee and len(distinct) < wanted:
        raise ConfigError(
            f"--guarantee needs {wanted} answers for --target {target:g}{'' if cascade is None else ' and --cascade'}, "
            f"the input has {len(distinct)} that are no copies of others and share no prompt; give more, or a larger "
            "target"
        )
    seen = _seen_by_the_probe(artefact, distinct)
    if guarantee and seen:
        raise ConfigError(f"--guarantee does not hold for these answers: {seen}; leave them out")
    guard = load.open_guard(loading.of(model), opt.GuardOptions(probe=artefact, interval=interval))
    old: Any = guard.detector
    _check_other_probe(out, old)
    second = None if cascade is None else detector_named(cascade)
    if second is not None:
        Guard.from_backend(guard.backend, second)  # what it cannot do on this model is an error now
    notes = (
        left_out_note(answers, different, COPIES),
        left_out_note(different, distinct, SHARED_PROMPTS),
        seen,
        _shared_sources(old.card, distinct),
        _lost(old.card, second),
    )
    for note in filter(None, notes):
        warn(f"note: {note}")
    read.scan(guard, distinct)
    chosen = _policy(policy, guard.policy)
    _check_peaks(chosen, read.trails)
    setting = partial(
        set_threshold,
        chosen,
        target=target,
        confidence=confidence,
        guarantee=guarantee,
        data=", ".join(f"{path.name} (sha256 {_digest(path)})" for path in benign),
    )
    more = {} if second is None else {"cascade": _cascade(read, guard, second, band_share, setting)}
    found = setting(read.trails)
    if (note := threshold_note(found.policy)) is not None:
        warn(f"note: {note}")
    new = recalibrated(
        old,
        found,
        schedule=str(guard.schedule),
        failed=read.failed,
        copies=len(answers) - len(different),
        same_prompt=len(different) - len(distinct),
        replaces=None if old.card.policy is None else dict(old.card.policy),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    )
    new.save(out)
    refresh(out, new)
    if as_json:
        write_json({"probe": str(out), "policy": new.card.policy, "calibration": new.card.calibration})
    else:
        _print(Console(highlight=False), out, old.card.policy, new.card)
    if read.failed:
        err.print(Text(f"{plural(read.failed, 'record')} failed and were left out", style="red"), soft_wrap=True)
        raise typer.Exit(1)


def _cascade(
    read: TrafficReading, guard: Guard, second: Detector, share: float, setting: partial[Calibration]
) -> Mapping[str, Any]:
    """The calibration of the probe and `second` as one detector.

    A guarantee holds for a detector that was made before its answers were seen: every other answer is for the band
    there, and the rest for the threshold.
    """
    step = 2 if setting.keywords["guarantee"] else 1
    band = find_band(read.trails[::step], share=share, target=setting.keywords["target"])
    cascade = Cascade(guard.detector, second, band.low, band.high)
    scored = read.look_twice(guard, cascade, read.read[step - 1 :: step])
    return cascade_record(cascade, band, setting([each.trail for each in scored]), scored)


def _seen_by_the_probe(artefact: Path | None, answers: Sequence[TrafficAnswer]) -> str:
    """What is known of answers that the probe was made with, from the record that `anydepth fit` leaves beside it."""
    known = {} if artefact is None else answers_seen(artefact)
    found = []
    for use, keys in known.items():
        if count := sum(answer.text.key in keys for answer in answers):
            found.append(f"{count} of {plural(len(answers), 'answer')} are among those that the probe was {use} on")
    return "; ".join(found)


def _shared_sources(card: ProbeCard, answers: Sequence[TrafficAnswer]) -> str:
    """What the card says of the answers' sources, where it knows them."""
    shared = sorted({answer.source for answer in answers} & {str(source.get("name")) for source in card.sources})
    if not shared:
        return ""
    return (
        f"the probe was trained on answers of {', '.join(shared)}, of which there are some here as well; the figures "
        "hold for answers that it has not seen"
    )


def _lost(card: ProbeCard, second: Detector | None) -> str:
    """That the probe's cascade is not calibrated again, where it has one."""
    if second is not None or "cascade" not in card.calibration:
        return ""
    return "the new probe has no cascade, the old one has; add --cascade to calibrate it again"


def _check_peaks(policy: Policy, trails: Sequence[Trail]) -> None:
    """Refuse scores that are the same for every answer: whatever threshold they give, it means nothing."""
    peaks = {peak(policy, trail) for trail in trails}
    if len(trails) < 2 or len(peaks) > 1:
        return
    (value,) = peaks
    if value == 0 and not isinstance(policy, Threshold | Ewma):
        return  # no answer has so many high scores, or one above the drift
    raise ConfigError(
        f"all {len(trails)} answers peak at {value:g}: the probe tells no answer from another, and no threshold on it "
        "means anything. Look at the probe and at --dtype, or fit a new one with `anydepth fit`"
    )


def _destination(output: Path | None, name: str | Path) -> Path:
    """Where the new probe goes; ConfigError if that cannot be, before a model is loaded."""
    if output is None:
        stem = str(name).removesuffix(".safetensors").rstrip("/")
        out = Path(f"{stem}.calibrated.safetensors")
        if out.exists():
            raise ConfigError(f"{out} is there already; say `-o {out}` to overwrite it, or name another file")
    else:
        out = artefact_in(output)
    if out.suffix != ".safetensors":
        raise ConfigError(f"-o {output} is neither a folder nor a name that ends in .safetensors; give one of these")
    if is_stream(out):
        raise ConfigError(f"-o {out} is a pipe or a device; give the name of a file")
    check_destination(out, "-o")
    return out


def _check_other_probe(out: Path, probe: LinearProbe) -> None:
    """Refuse to put the probe beside the model card of another one."""
    if not (out.is_file() and out.name == ARTEFACT and out.with_name(README).is_file()):
        return
    there = LinearProbe.load(out)
    if there.numbers != probe.numbers or there.bias != probe.bias:
        raise ConfigError(
            f"-o {out.parent} holds another probe, with a model card of its own; give the folder of the probe that is "
            "calibrated, or a name for a file"
        )


def _policy(name: str | None, own: Policy) -> Policy:
    """The policy that is asked for; of the probe's own kind, with its own options."""
    return own if name is None or policy_record(own)["name"] == name else policy_from({"name": name})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _print(console: Console, out: Path, before: Mapping[str, Any] | None, card: ProbeCard) -> None:
    rows = [("policy", policy_text(card.policy)), ("before", policy_text(before)), *evidence_rows(card.calibration)]
    console.print(fact_table([*rows, ("written to", out)]))
    for table in evidence_tables(card.calibration):
        console.print(table)
