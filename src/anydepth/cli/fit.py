"""`anydepth fit`: from conversations to a calibrated probe in a folder of its own."""

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from anydepth.backends.protocol import Backend
from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.evidence import evidence_rows, fact_table, policy_text, text_table
from anydepth.cli.output import Bars, err, plural, warn
from anydepth.cli.shared_options import DataDir, Loading, grouped
from anydepth.detectors import LinearProbe
from anydepth.errors import ConfigError
from anydepth.files import public_name
from anydepth.intervals import answers_needed, check_share, percent, percent_range
from anydepth.locks import hold
from anydepth.probes.artefact.fit_record import forget, write_fit_record
from anydepth.probes.artefact.modelcard import ARTEFACT, write_folder
from anydepth.probes.fitting.figures import figures_of, limits_of
from anydepth.probes.fitting.train import Trained, fill, train
from anydepth.probes.recipe.choices import Choices
from anydepth.probes.recipe.recipe import Gathered, Recipe, gather, read_recipe, recipe_for
from anydepth.probes.tokens.fill_trained import fill_trained
from anydepth.probes.tokens.token_options import TokenOptions

INNATE, TRAINED = "innate", "trained"


@grouped
def fit(
    context: typer.Context,
    model: opt.Model,
    output: Annotated[Path, opt.output(metavar="PROBE", help="Folder of the probe: the artefact and its model card.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="REF",
            help="Labelled conversations of your own: a file, a corpus or `hf:owner/name`. A quarter of the prompts is "
            "held out. Give it again for more; without it the recipe says what to use.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", metavar="FILE", help="What to train, choose and measure on. Default: the shipped one."
        ),
    ] = None,
    data_dir: DataDir = None,
    work: Annotated[
        Path | None,
        typer.Option("--work", metavar="DIR", help="Where states and own answers are kept. Default: PROBE/work."),
    ] = None,
    permissive: Annotated[
        bool, typer.Option("--permissive", help="Train only on data whose licence lets the probe be passed on.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", metavar="ID", help="What the card calls the model, e.g. its hub id.")
    ] = None,
    licence: Annotated[
        str, typer.Option("--licence", metavar="ID", help="Licence of the probe, as the hub spells it.")
    ] = "other",
    target: Annotated[
        float | None, typer.Option("--target", metavar="RATE", help="Share of harmless answers that may be halted.")
    ] = None,
    safety_tokens: Annotated[
        str,
        typer.Option(
            "--safety-tokens",
            metavar="WHICH",
            help="`innate`: the chat template's own. `trained`: embeddings that are trained together with the probe "
            "(Transformers only).",
        ),
    ] = INNATE,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="K", help="How many to train, with --safety-tokens trained. Default: 1."),
    ] = None,
    *,
    loading: Loading,
) -> None:
    """Train, choose, calibrate and measure a probe for a model.

    Reads every answer at many depths in packed passes, lets the model write answers of its own where the recipe says
    so, fits every candidate of the recipe, chooses on one half of the held-out prompts, sets the threshold there and
    measures on the other half. It goes on where an earlier run was stopped.
    """
    wanted = _wanted(data, recipe, target)
    own = _own_tokens(safety_tokens, tokens)
    gathered = gather(wanted, data=data_dir, permissive_only=permissive)
    _tell_left_out(gathered)
    choices = Choices.of(wanted)
    choices.check(wanted, gathered)  # before a model is loaded
    _tell_what_is_verified(choices, gathered)
    _check_output(output)
    for place in {output.resolve(), (work or output).resolve()}:
        context.with_resource(hold(place))
    begun = time.monotonic()
    backend = load.open_backend(loading.of(model))
    _check_other_probe(output, backend)
    folder = work or output / "work"
    with Bars() as bars:
        if own is None:
            filled = fill(backend, gathered, wanted, folder, adapter=loading.adapter, progress=bars)
            trained = train(backend, filled, wanted, progress=bars)
        else:
            found = fill_trained(backend, gathered, wanted, folder, own, adapter=loading.adapter, progress=bars)
            filled, trained = found.filled, train(backend, found.filled, found.recipe, progress=bars)
            trained = replace(trained, figures={**trained.figures, "safety_tokens": found.record()})
    _tell_left_out(filled.gathered, before=gathered)
    probe = _signed(trained.probe, name, model, time.monotonic() - begun)
    options = {
        "--name": name,
        "--revision": loading.revision,
        "--adapter": loading.adapter,
        "--dtype": loading.dtype,
        "--template-kwarg": loading.template_kwarg,
        "--data": data,
        "--recipe": recipe,
        "--data-dir": "DATA" if data_dir else None,
        "--permissive": permissive,
        "--target": target,
        "--licence": licence,
        "--safety-tokens": safety_tokens if own else None,
        "--tokens": None if own is None else str(own.count),
    }
    _write(output, probe, trained, licence, _command(model, options))
    _show(probe, trained, output)


def _wanted(data: list[str] | None, recipe: Path | None, target: float | None) -> Recipe:
    if data and recipe is not None:
        raise ConfigError("both --data and --recipe were given; put the data into the recipe as a [[part]]")
    wanted = recipe_for(data) if data else read_recipe(recipe)
    if target is None:
        return wanted
    check_share("--target", target)
    return replace(wanted, calibrate={**wanted.calibrate, "target": target})


def _own_tokens(which: str, count: int | None) -> TokenOptions | None:
    """How Safety Tokens are to be trained; None for the template's own."""
    if which not in (INNATE, TRAINED):
        raise ConfigError(f"--safety-tokens is {which!r}; choose {INNATE} or {TRAINED}")
    if which == INNATE and count is not None:
        raise ConfigError(f"--tokens is {count}, and no tokens are trained; give --safety-tokens {TRAINED} as well")
    return None if which == INNATE else TokenOptions(count=1 if count is None else count)


def _tell_left_out(gathered: Sequence[Gathered], before: Sequence[Gathered] = ()) -> None:
    """Say what was left out of each part, if it was not said `before`."""
    said = {each.part.name: each.left_out for each in before}
    for each in gathered:
        if each.left_out and each.left_out != said.get(each.part.name):
            warn(f"left out of {each.part.name}: {each.left_out}")


def _signed(probe: LinearProbe, name: str | None, model: str, seconds: float) -> LinearProbe:
    """The probe with the model's public name, and how long it took."""
    identity = replace(probe.card.model, name=name or model)
    notes = f"Fitted in {seconds / 60:.0f} minutes, what was collected before not counted."
    return probe.with_card(replace(probe.card, model=identity, notes=notes))


def _command(model: str, options: Mapping[str, Any]) -> str:
    """The command line that made the probe, without the folders of this machine."""
    parts = ["anydepth", "fit", public_name(model)]
    for name, given in options.items():
        for value in given if isinstance(given, list) else [given]:
            if value is True:
                parts.append(name)
            elif value:
                parts += [name, public_name(value)]
    return shlex.join([*parts, "-o", "PROBE"])


def _tell_what_is_verified(choices: Choices, gathered: Sequence[Gathered]) -> None:
    """Say beforehand that the threshold's target will be met and not shown, if there are too few answers for that."""
    if choices.contract == "guarantee":
        return  # too few are refused
    rows = [row for each in gathered if each.part.split in choices.benign for row in each.conversations]
    count, needed = sum(row.label == "benign" for row in rows), answers_needed(choices.target)
    if count < needed:
        warn(
            f"note: the threshold is set on {plural(count, 'benign answer')}; to verify a false-positive rate of "
            f"{percent(choices.target)}, {needed} are needed"
        )


def _check_output(output: Path) -> None:
    """Refuse a place that no probe can be written to: before hours of work, not after."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"-o {output} cannot be made a folder: {error.strerror or error}") from error
    if not os.access(output, os.W_OK):
        raise ConfigError(f"-o {output}: nothing can be written into that folder; give another one")


def _check_other_probe(output: Path, backend: Backend) -> None:
    """Refuse a folder that holds the probe of another model: it would be lost."""
    if not (output / ARTEFACT).is_file():
        return
    there = LinearProbe.load(output).card.model
    if there.fingerprint != backend.identity.fingerprint:
        raise ConfigError(
            f"-o {output} holds a probe of {there.name} (weights {there.fingerprint or 'not known'}), which is another "
            "model; give another folder"
        )


def _write(output: Path, probe: LinearProbe, trained: Trained, licence: str, command: str) -> None:
    # what describes an earlier probe goes first: a run that is killed here must not leave it beside the new one
    forget(output)
    write_folder(output, probe, figures_of(trained), limits_of(trained), command, licence=licence)
    record = {
        "figures": trained.figures,
        "trials": [trial.record() for trial in trained.trials],
        "left_out": dict(trained.left_out),
    }
    write_fit_record(output, record, trained.seen)


def _show(probe: LinearProbe, trained: Trained, output: Path) -> None:
    card, out = probe.card, Console(highlight=False)
    facts = [("reads", ", ".join(map(str, card.reads))), ("policy", policy_text(card.policy))]
    out.print(fact_table([*facts, *evidence_rows(card.calibration)]))
    out.print(_pairs_table(trained.figures))
    rows: list[tuple[str, str, str]] = []
    for kind, what in (("halted", "halted"), ("false_positives", "halted, harmless")):
        for name, found in trained.figures[kind].items():
            low, high = map(percent, found["interval"])
            rows.append((f"{name} ({what})", percent(found["rate"]), f"{low} to {high}"))
    title = "on held-out answers that no choice was made on"
    out.print(text_table(["set", "share", "95 % interval"], rows, title=title, title_justify="left"))
    if left := trained.figures.get("leave_out"):
        lines = [(name, *_left_out(found)) for name, found in left.items()]
        title = "sources that a refit never saw"
        out.print(text_table(["source", "AUROC", "against"], lines, title=title, title_justify="left"))
    err.print(
        Text(f"{plural(len(trained.trials), 'candidate')} tried; probe and model card in {output}"), soft_wrap=True
    )


def _pairs_table(figures: Mapping[str, Any]) -> RenderableType:
    """Each pair with what depth 0 alone says and what the probe adds, the crossed ones first."""
    pairs, crossed = figures["pairs"], figures["crossed"]
    order = [*crossed, *(name for name in pairs if name not in crossed)]
    rows: list[tuple[str, ...]] = []
    for name in order:
        found = pairs[name]
        halted = [each["halted"] for each in (found, found["control"], found["added"])]
        rates = [percent(each["rate"] if "rate" in each else each["value"]) for each in halted]
        values = [each["auroc"] for each in (found, found["control"], found["added"])]
        rows += [
            (name, "", "", ""),
            ("  AUROC", *(f"{each['value']:.3f}" for each in values)),
            ("  95 % interval", *(_range(each["interval"]) for each in values)),
            ("  harmful halted", *rates),
            ("  95 % interval", *(percent_range(each["interval"]) for each in halted)),
        ]
    title = "with the control: the request alone, which is all that depth 0 sees"
    columns = ["pair", "probe", "request alone", "added"]
    return text_table(columns, rows, title=title, title_justify="left")


def _range(interval: Sequence[float]) -> str:
    low, high = interval
    return f"[{low:.3f}, {high:.3f}]"


def _left_out(found: Mapping[str, Any]) -> tuple[str, str]:
    if found["auroc"] is None:
        return "–", found["why"]
    return f"{found['auroc']:.3f} {_range(found['interval'])}", found["against"]
