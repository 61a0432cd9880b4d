"""`anydepth probe`: look at probes, take them in, hand them on."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from anydepth.backends.protocol import Read, Site
from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.drift import drift
from anydepth.cli.evidence import Rows, drift_table, evidence_rows, evidence_tables, fact_table, policy_text
from anydepth.cli.output import err, warn, write_json
from anydepth.cli.shared_options import Loading, grouped
from anydepth.detectors import LinearProbe, ProbeCard, find_shipped
from anydepth.detectors.card import card_record
from anydepth.detectors.probe import shipped_probes
from anydepth.errors import ConfigError, ProbeError
from anydepth.probes.artefact.joblib_import import check_pickle, import_joblib
from anydepth.probes.artefact.modelcard import ARTEFACT, README, artefact_in, describes
from anydepth.reasons import reason
from anydepth.templates.template import published

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

app = typer.Typer(
    name="probe",
    no_args_is_help=True,
    help="Look at a probe, put one on the hub, import a published one.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def show(
    probe: Annotated[
        str,
        typer.Argument(metavar="PATH|MODEL", help="A probe file or folder, or a model that a probe is shipped for."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as one JSON object instead.")] = False,
) -> None:
    """Show what a probe belongs to, where it comes from and how its threshold was set."""
    name, found = _find(probe)
    if as_json:
        write_json({"probe": name, **card_record(found.card)})
        return
    try:
        tables = [fact_table([("probe", name), *_card_rows(found.card)]), *evidence_tables(found.card.calibration)]
        tables += [drift_table(found.card.drift)] if found.card.drift else []
    except (TypeError, ValueError, LookupError, AttributeError) as error:  # a record that something else wrote
        raise ProbeError(
            f"{name}: the calibration in the card is not as `anydepth calibrate` writes it ({reason(error)}); "
            "see it with --json, or calibrate the probe again"
        ) from error
    console = Console(highlight=False)
    for table in tables:
        console.print(table)


app.command()(drift)


@app.command()
def push(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A probe folder, as `anydepth fit` writes it.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where to on the Hugging Face hub: org/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository a private one, if it is new.")
    ] = False,
    message: Annotated[str, typer.Option("--message", metavar="TEXT", help="The commit message.")] = "Upload a probe",
) -> None:
    """Put a probe folder on the Hugging Face hub: the artefact and its README, nothing else of the folder.

    The token is that of `hf auth login` or of the environment variable HF_TOKEN.
    """
    for name in (ARTEFACT, README):
        if not (path / name).is_file():
            raise ConfigError(f"{path} has no {name}; give a probe folder, as `anydepth fit MODEL -o FOLDER` writes it")
    probe = LinearProbe.load(path / ARTEFACT)  # nothing broken leaves
    described = describes(path / README, probe)
    if described is False:
        raise ConfigError(
            f"{path / README} was written for another probe than {ARTEFACT} beside it: a run was stopped while it "
            "wrote, or a file was put there by hand. Fit or calibrate into that folder again"
        )
    if described is None:
        warn(f"note: {path / README} does not say which probe it was written for; see that it is this one")
    from anydepth.probes.artefact.hub import push_folder

    with err.status("uploading"):
        url = push_folder(path, repo_id, files=[ARTEFACT, README], private=private, message=message)
    typer.echo(url)


@app.command("import")
@grouped
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A scikit-learn probe, e.g. layer_15.joblib.")],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Hugging Face id or folder of its model.")],
    output: Annotated[Path, opt.output(metavar="OUT", help="Where the .safetensors goes.")],
    site: Annotated[
        str | None,
        typer.Option("--site", metavar="BLOCK.MODULE", help="Where it reads. Default: the published site, if known."),
    ] = None,
    header_text: Annotated[
        str | None,
        typer.Option(
            "--header-text",
            metavar="TEXT",
            help=r"The Safety Tokens that it was fitted on, `\n` for a new line; it reads the last of them. Default: "
            "those published for the model, else those of its chat template.",
        ),
    ] = None,
    read_index: Annotated[
        int | None, typer.Option("--read-index", metavar="N", help="Which token of these it reads, from 0.")
    ] = None,
    positive: Annotated[str, typer.Option("--positive", metavar="CLASS", help="Its class that means harmful.")] = "1",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="FILE is a pickle: reading it runs whatever code it holds. Allow it.")
    ] = False,
    *,
    loading: Loading,
) -> None:
    """Turn a published scikit-learn probe into a probe file.

    The file does not say which weights it was fitted on: architecture and size of MODEL are recorded, and it is you who
    says that they are the right ones. It has no calibrated threshold either: see `anydepth calibrate`.
    """
    check_pickle(file, allow_pickle)
    if not file.is_file():
        raise ConfigError(f"there is no file {file}")
    if output.suffix != ".safetensors" or not output.absolute().parent.is_dir():
        raise ConfigError(f"-o {output}: give a name that ends in .safetensors, in a folder that exists")
    if output.name == ARTEFACT and output.with_name(README).exists():
        raise ConfigError(f"-o {output}: the {README} beside it is of another probe; give another folder or name")
    backend = load.open_backend(loading.of(model))
    card = _imported_card(backend, site, header_text, read_index, file.name)
    probe = import_joblib(file, card, positive=_class(positive), allow_pickle=allow_pickle)
    probe.bind(backend)  # a probe that no guard would take is not written
    probe.save(output)
    Console(highlight=False).print(fact_table([("written to", output), *_card_rows(probe.card)]))


def _find(probe: str) -> tuple[str, LinearProbe]:
    """Where it is and the probe: of a file, a folder, or shipped for a model."""
    path = artefact_in(probe)
    if path.is_file():
        return str(path), LinearProbe.load(path)
    shipped = list(shipped_probes())
    for name, found in shipped:
        if found.card.model.name == probe:
            return f"shipped: {name}", found
    if (Path(probe) / "config.json").is_file():  # a copy of a model: only its weights say which
        found = find_shipped(load.open_backend(opt.ModelOptions(probe)))
        if found is not None:
            return f"shipped for {found.card.model.name}", found
    names = ", ".join(found.card.model.name for _, found in shipped) or "none"
    raise ConfigError(f"{probe!r} is neither a probe file or folder nor a model with a shipped probe ({names})")


def _card_rows(card: ProbeCard) -> Rows:
    model = card.model
    yield "model", model.name + (f", revision {model.revision}" if model.revision else "")
    yield "weights", model.fingerprint or "not known: any weights of this architecture and size are taken"
    yield "size", f"{model.model_type}, {model.num_layers} layers of width {model.hidden_size}"
    own = f"{card.safety_tokens} trained ones, in the place of the template's header"
    yield "Safety Tokens", own if card.safety_tokens else list(card.header_ids)
    yield "reads", ", ".join(map(str, card.reads))
    yield "dtype", card.dtype
    yield "adapter", card.adapter
    yield "policy", policy_text(card.policy)
    yield from evidence_rows(card.calibration)
    yield "trained on", ", ".join(f"{each.get('name')} ({each.get('licence', 'unknown')})" for each in card.sources)
    yield "created", card.created
    yield "seed", card.seed
    yield "versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())
    yield "notes", card.notes


def _imported_card(
    backend: "TransformersBackend", site: str | None, header_text: str | None, read_index: int | None, file: str
) -> ProbeCard:
    row = published(backend.identity.name)
    site = site or (row.site if row else None)
    if site is None:
        raise ConfigError(
            f"nothing is published on where a probe of {backend.identity.name} reads; say it with --site, e.g. "
            "--site 15.input_layernorm"
        )
    text = header_text.replace("\\n", "\n") if header_text is not None else row.probe_header if row else None
    if text is None:
        ids, read = tuple(backend.header.ids), backend.header.read_index
    else:
        ids = tuple(backend.template.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise ConfigError(f"--header-text is {text!r}, which has no tokens; give the Safety Tokens as text")
        read = len(ids) - 1
    read = read if read_index is None else read_index
    if not 0 <= read < len(ids):
        raise ConfigError(f"--read-index is {read}, the header has {len(ids)} tokens; give 0 to {len(ids) - 1}")
    return ProbeCard(
        model=replace(backend.identity, fingerprint="", revision=None),
        header_ids=ids,
        reads=(Read(Site.parse(site), read),),
        notes=f"Imported from {file}; the weights that it was fitted on are not recorded.",
    )


def _class(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
