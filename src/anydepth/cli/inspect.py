"""`anydepth inspect`: what anydepth makes of a model."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.evidence import Rows, fact_table
from anydepth.cli.output import printable, write_json
from anydepth.cli.shared_options import Loading, grouped
from anydepth.detectors import find_shipped
from anydepth.templates.template import published

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

_QUESTION = "How are you?"


@grouped
def inspect(
    model: opt.Model,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    prove: Annotated[
        bool, typer.Option("--prove", help="Try each kind of check, and exit with 1 if one fails.")
    ] = False,
    *,
    loading: Loading,
) -> None:
    """Show a model's Safety Tokens and what anydepth can do with it.

    The header with the token that is read, how a prompt ends, what brings the answer after it, the layers, how each
    kind of cache layer is forked, whether a finished answer can be scanned in one pass, and whether a probe is shipped.
    With --prove, each kind of check is tried on a prompt of one word: a state on a fork against a pass over the whole
    text, a packed pass against forks (where that fails, forks are read instead), and a look-ahead.
    """
    backend = load.open_backend(loading.of(model))
    trials = backend.self_test() if prove else []  # first: it finds out whether a packed pass works
    record = describe(backend, has_probe=find_shipped(backend) is not None)
    if prove:
        record["trials"] = trials
    if as_json:
        write_json(record)
    else:
        Console(highlight=False).print(fact_table(_rows(record)))
    if any(not trial["works"] and trial["check"] != "packed" for trial in trials):
        raise typer.Exit(1)


def describe(backend: "TransformersBackend", *, has_probe: bool) -> dict[str, Any]:
    """Return the facts as one JSON object."""
    header, template, identity = backend.header, backend.template, backend.identity
    prompt, channel = template.prompt(_QUESTION), template.channel
    row = published(identity.name)
    tokens = zip(header.ids, header.tokens, strict=True)
    return {
        "model": identity.name,
        "revision": identity.revision,
        "model_type": identity.model_type,
        "header": [
            {"id": each, "token": token, "read": index == header.read_index}
            for index, (each, token) in enumerate(tokens)
        ],
        "header_source": template.source,
        "prompt_end": template.text(_QUESTION).rpartition(_QUESTION)[2],
        "prompt_has_read_token": template.start_index(prompt, header.read_index) is not None,
        "answer_ids": list(header.answer_ids),
        "answer_opener": template.words(template.answer_ids(prompt)),
        "channels": list(template.channels),
        "thoughts": [channel.think_open, channel.think_close] if channel else None,
        "template_digest": template.digest,
        "published_site": row.site if row else None,
        "shipped_probe": has_probe,
        **backend.describe(),
    }


def _rows(record: dict[str, Any]) -> Rows:
    source = record["header_source"]
    revision = f", revision {record['revision']}" if record["revision"] else ""
    context = record["context_length"] or "no limit"
    site = record["published_site"]
    lacking = "\n(no read token in it: at depth 0 the header is put behind it)"
    thoughts = f"; thoughts stand in {_one_line(' … '.join(record['thoughts']))}" if record["thoughts"] else ""
    return [
        ("model", f"{record['model']} ({record['model_type']}{revision})"),
        ("layers", f"{record['layers']}, hidden size {record['hidden_size']}, context {context}"),
        ("Safety Tokens", _header(record["header"])),
        ("from", "the chat template" if source == "derived" else f"the row {source!r} of models.toml"),
        ("a prompt ends in", _one_line(record["prompt_end"]) + ("" if record["prompt_has_read_token"] else lacking)),
        ("an answer opens with", _one_line(record["answer_opener"]) or "nothing: it begins at once"),
        ("channels", ", ".join(record["channels"]) + thoughts),
        ("read at", _site(record["default_site"], record["site_reason"]) + (f", published: {site}" if site else "")),
        ("cache", record["cache_reason"] or _cache(record["cache"])),
        ("checks", _checks(record)),
        ("one-pass scan", "yes" if record["packed"] else f"no, check by check: {record['packed_reason']}"),
        ("shipped probe", "yes" if record["shipped_probe"] else "no: pass --probe, or use --detector rethink"),
        *((f"trial: {each['check']}", _trial(each)) for each in record.get("trials", ())),
    ]


def _site(default: str | None, reason: str | None) -> str:
    return f"nowhere: {reason}" if default is None else f"{default} by default"


def _checks(record: dict[str, Any]) -> str:
    """How a check reads: in the decode step or on a fork, and why."""
    if record["rides"]:
        return "ride in the decode step"
    why = f"cannot ride: {record['ride_reason']}" if record["ride_reason"] else f"--ride {record['ride']}"
    return f"on a fork of the cache ({why})"


def _trial(trial: dict[str, Any]) -> str:
    return f"{'works' if trial['works'] else 'does not work'}: {trial['detail']}"


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")


def _header(tokens: list[dict[str, Any]]) -> Text:
    """Return the header, one token per line, the read token marked."""
    lines = [(f"{token['id']:>7}  {printable(token['token'])}", token["read"]) for token in tokens]
    marked = [Text(f"{line}   <- read token", "bold green") if read else Text(line) for line, read in lines]
    return Text("\n").join(marked)


def _cache(layers: list[dict[str, Any]]) -> str:
    return "\n".join(f"{each['count']} x {each['layer']}, fork {each['fork']}" for each in layers) or "none"
