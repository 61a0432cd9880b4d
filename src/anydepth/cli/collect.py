"""`anydepth collect`: the hidden states of finished answers, as training data for probes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from anydepth.backends.protocol import CONTENT, Reader, Site
from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.output import Bars, err, plural, warn
from anydepth.cli.shared_options import DataDir, Loading, grouped, numbers
from anydepth.conversations.corpora import load as load_data
from anydepth.conversations.dataset import Conversation
from anydepth.digests import digest_number
from anydepth.errors import ConfigError
from anydepth.files import check_folder
from anydepth.locks import hold
from anydepth.probes.recipe.own_answers import Written, write_answers
from anydepth.probes.states.collect import Collected, collect_into
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.ray import Workers, collect_with_ray, load_backend
from anydepth.probes.states.sites import sites_for
from anydepth.schedule import Every, Listed, Schedule
from anydepth.templates.header import parse_token

_what = partial(typer.Option, rich_help_panel="What is read")
_how = partial(typer.Option, rich_help_panel="How it runs")
_NAMED = 20
"""Skipped answers that are named at most."""


@grouped
def collect(
    model: opt.Model,
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="REF",
            help="Conversations: a file, a folder, a name of a corpus or `hf:owner/name`. Give it again for more.",
        ),
    ],
    output: Annotated[Path, opt.output(metavar="STORE", help="Folder of the store; answers in it are not read again.")],
    data_dir: DataDir = None,
    layers: Annotated[
        str | None,
        _what(
            "--layers", metavar="N,N", help="Blocks to read at. Default: those at 50, 58, 67, 75 and 83 % of the depth."
        ),
    ] = None,
    sites: Annotated[
        str | None, _what("--sites", metavar="N.MODULE,…", help="The same with the module, e.g. `18.output`.")
    ] = None,
    tokens: Annotated[
        str,
        _what(
            "--tokens",
            metavar="N,N",
            help="Header tokens to read; -1 for the last token of the answer, `mean25` for the mean of its last 25, "
            "`mean` for that of the whole answer. All header tokens and -1: `all`.",
        ),
    ] = "all",
    interval: Annotated[
        int | None, _what("--interval", help="Read every N tokens, more often at the start. Default: 25.")
    ] = None,
    depths: Annotated[
        str | None, _what("--depths", metavar="N,N", help="Read at these depths, at 0 and at the end.")
    ] = None,
    longest: Annotated[
        int | None, _what("--longest", metavar="N", min=1, help="Read N tokens of an answer at most.")
    ] = None,
    view: Annotated[
        Literal["own", "shadow"], _what("--view", help="`shadow`: read each answer under a neutral user turn.")
    ] = "own",
    suffix: Annotated[
        Literal["header", "newline", "random", "user"],
        _what("--suffix", help="What to append; all but `header` are controls."),
    ] = "header",
    split: Annotated[str, _what("--split", metavar="NAME", help="What these answers are called.")] = "train",
    limit: Annotated[int | None, _what("--limit", min=1, help="Read the first N conversations only.")] = None,
    on_policy: Annotated[
        bool,
        _what(
            "--on-policy",
            help="Read the model's own answers instead: it answers benign prompts and continues harmful answers. "
            "They are kept in the store's folder.",
        ),
    ] = False,
    part: Annotated[str, _how("--part", metavar="I/N", help="The I-th of N processes, counted from 0.")] = "0/1",
    engine: Annotated[
        Literal["transformers", "vllm", "ray"],
        _how(
            "--engine",
            help="`vllm`: vLLM with continuous batching (extra `vllm`); `ray`: several processes or machines with "
            "Transformers (extra `ray`).",
        ),
    ] = "transformers",
    engine_arg: opt.EngineArgs = None,
    workers: Annotated[int, _how("--workers", min=1, help="Processes of `--engine ray`.")] = 2,
    *,
    loading: Loading,
) -> None:
    """Read the hidden states of finished answers at many depths, as training data for probes.

    STORE becomes a folder of Parquet files with a manifest, which pandas, Polars and `datasets` open. All depths of an
    answer are read in one forward pass. Run the same command again to go on after an interruption.
    """
    if layers is not None and sites is not None:
        raise ConfigError("--layers and --sites both say where to read; give one of them")
    if interval is not None and depths is not None:
        raise ConfigError("--interval and --depths both say when to read; give one of them")
    blocks = None if layers is None else numbers("--layers", layers)
    plan = CollectPlan(  # what is wrong in itself is refused before a model is loaded
        _sites(sites) if sites is not None else (Site(0),),
        None if tokens == "all" else _tokens(tokens),
        _schedule(interval, depths),
        longest,
        suffix,
        split,
        view,
        opt.part_of(part),
    )
    runs = "vllm" if engine == "vllm" else "transformers"
    loaded = loading.of(model, runs, tuple(engine_arg or ()))
    if on_policy and engine == "vllm":
        raise ConfigError("--on-policy has Transformers write the answers; drop --engine vllm")
    check_folder(output, "-o")
    conversations = _conversations(data, data_dir)[:limit]
    with hold(output, opt.part_name(plan.part)):
        if on_policy:
            conversations = _own_answers(loaded, conversations, output, plan.part)
            plan = replace(plan, part=(0, 1))  # they have been divided already
            if not conversations:
                raise ConfigError("the model wrote no answer whose label is known; give labelled conversations")
        run = partial(_with_ray, workers) if engine == "ray" else _in_process
        with Bars() as bars:
            plan_for = partial(_at_sites, plan, None if sites is not None else partial(sites_for, layers=blocks))
            found = run(loaded, conversations, output, plan_for, partial(bars, "collect"))
    _tell(found, output, bars.seconds("collect"))
    if not found.answers and not found.present:
        raise typer.Exit(1)


def _sites(text: str) -> tuple[Site, ...]:
    named = {Site.parse(part.strip()) for part in text.split(",")}
    return tuple(sorted(named, key=lambda site: (site.block, site.module)))


def _tokens(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    try:
        return tuple(sorted({CONTENT if part == "-1" else parse_token(part) for part in parts}))
    except ConfigError as error:
        raise ConfigError(f"--tokens is {text!r}: {error}") from None


def _schedule(interval: int | None, depths: str | None) -> Schedule:
    if depths is not None:
        return Listed(tuple(sorted(set(numbers("--depths", depths)))))
    return Every() if interval is None else Every(interval)


def _at_sites(plan: CollectPlan, sites: "Callable[[Reader], tuple[Site, ...]] | None", backend: Reader) -> CollectPlan:
    """`plan` at the `sites` of the model; None leaves those that it names."""
    return plan if sites is None else replace(plan, sites=sites(backend))


def _conversations(refs: Sequence[str], data_dir: Path | None) -> list[Conversation]:
    found = [each for ref in refs for each in load_data(ref, data=data_dir)]
    if not found:
        raise ConfigError(f"--data {', '.join(refs)} has no conversations; give one that is not empty")
    return found


def _in_process(
    model: opt.ModelOptions,
    conversations: Sequence[Conversation],
    output: Path,
    plan_for: "Callable[[Reader], CollectPlan]",
    report: "Callable[[int, int, int], None]",
) -> Collected:
    if model.engine == "vllm":
        backend: Reader = load.open_vllm(model, lambda facts: plan_for(facts).sites)
    else:
        backend = load.open_backend(model)
    plan = plan_for(backend)
    return collect_into(output, backend, conversations, plan, adapter=model.adapter, progress=report)[1]


def _with_ray(
    workers: int,
    model: opt.ModelOptions,
    conversations: Sequence[Conversation],
    output: Path,
    plan_for: "Callable[[Reader], CollectPlan]",
    report: "Callable[[int, int, int], None]",
) -> Collected:
    name = str(Path(model.model).absolute()) if Path(model.model).exists() else model.model
    each = Workers(workers, gpus=1 if (model.device or "").startswith("cuda") else 0)
    return collect_with_ray(
        partial(load_backend, name, **load.model_arguments(model)),
        conversations,
        output,
        plan_for,
        workers=each,
        adapter=model.adapter,
        progress=report,
    )


def _own_answers(
    model: opt.ModelOptions, conversations: Sequence[Conversation], output: Path, part: tuple[int, int]
) -> list[Conversation]:
    """Let the model write, and load what it wrote; a part has the prompts that fall to it, with all their answers."""
    index, count = part
    name = opt.part_name(part)
    mine = [each for each in conversations if digest_number(each.prompt_key) % count == index]
    path = output / (f"on-policy-{name}.jsonl" if name else "on-policy.jsonl")
    backend = load.open_backend(model)
    with Bars() as bars:
        written = write_answers(backend, mine, path, progress=partial(bars, "write"))
    _tell_written(written)
    return [each for each in written.conversations() if each.response]


def _tell(found: Collected, output: Path, seconds: float) -> None:
    parts = [f"{plural(found.answers, 'answer')}, {plural(found.checks, 'check')}"]
    if found.tokens:
        parts.append(f"{found.tokens / seconds:,.0f} tokens/s")
    counts = {"there before": found.present, "of these corrected": found.corrected, "skipped": len(found.skipped)}
    parts += [f"{count} {what}" for what, count in counts.items() if count]
    if found.contradicted:
        warn(f"note: {plural(found.contradicted, 'answer')} labelled both harmful and benign; kept without a label")
    _name_skipped("skipped", found.skipped)
    if found.by_forks:
        warn(f"note: read by a fork at each depth, which is slower: {found.by_forks}")
    err.print(Text(f"{', '.join(parts)}; states in {output}"), soft_wrap=True)


def _tell_written(written: Written) -> None:
    _name_skipped("left out", written.left_out)
    parts = [plural(written.answers, "own answer"), plural(written.continuations, "continuation")]
    for count, what in ((written.refused, "refuse"), (written.empty, "are empty and are not read")):
        if count:
            parts.append(f"{count} of the answers {what}")
    if written.left_out:
        parts.append(f"{len(written.left_out)} left out")
    err.print(Text(f"{', '.join(parts)}; text in {written.path}"), soft_wrap=True)


def _name_skipped(what: str, skipped: Sequence[tuple[str, str]]) -> None:
    for key, reason in skipped[:_NAMED]:
        warn(f"{what}: {key}: {reason}")
    if len(skipped) > _NAMED:
        warn(f"{what}: and {len(skipped) - _NAMED} more")
