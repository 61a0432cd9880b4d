"""`anydepth demo`: the same request, unguarded and guarded, side by side."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.output import (
    answer_record,
    check_number,
    check_record,
    err,
    plural,
    print_error,
    printable,
    summary,
    write_json,
)
from anydepth.cli.shared_options import Loading, grouped
from anydepth.cli.timeline import timeline
from anydepth.errors import AnydepthError
from anydepth.files import packaged_toml
from anydepth.types import Answer, Finished, Halted, Released, ScanResult

if TYPE_CHECKING:
    from anydepth.guard import Guard


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo shows, from `data/demo.toml`."""

    model: str
    request: str
    prefill: str
    generation: dict[str, Any]


@cache
def settings() -> DemoSettings:
    """Return the packaged settings."""
    return DemoSettings(**packaged_toml("demo.toml")["demo"])


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """What came of one demo; `released` and `refusal` are the two parts of the guarded text."""

    unguarded: str
    guarded: Answer
    released: str
    refusal: str
    scan: ScanResult
    threshold: float

    def fault(self) -> str | None:
        """Say in which way this outcome does not show what the demo is for, or None."""
        if not self.unguarded.strip():
            return "the unguarded model wrote nothing after the opening, so there was nothing to halt"
        if not self.guarded.halted:
            return f"the guarded answer was not halted ({summary(self.guarded)})"
        if self.guarded.verdict.reason == "error":
            return f"the guard halted because a check failed, not because of a score ({summary(self.guarded)})"
        return None


@grouped
def demo(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Hugging Face id or folder. Default: a small chat model.")
    ] = None,
    probe: opt.Probe = None,
    detector: opt.Detector = "probe",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    *,
    loading: Loading,
) -> None:
    """Show one attack, unguarded and guarded, side by side.

    The attack puts the beginning of a compliant answer into the model's mouth. Unguarded, the model goes on writing;
    under guard its own Safety Tokens notice, and the answer is halted. Below: the risk over the depth of the unguarded
    answer. Exit code 1 if that is not what happened.
    """
    shown = settings()
    name = model or shown.model
    options = opt.GuardOptions(probe=probe, detector=detector)
    outcome = _run(load.open_guard(loading.of(name), options), shown)
    if as_json:
        write_json(_record(name, shown, outcome))
    else:
        _print(Console(), name, shown, outcome)
    if fault := outcome.fault():
        print_error(AnydepthError(f"the demo did not show what it should: {fault}"))
        raise typer.Exit(1)


def _run(guard: "Guard", shown: DemoSettings) -> DemoOutcome:
    arguments: dict[str, Any] = {"prefill": shown.prefill, **shown.generation}
    with err.status("the unguarded model answers"):
        unguarded = guard.unguarded(shown.request, **arguments)
    released, refusal, answer = "", "", None
    with err.status("the guarded model answers"):
        for event in guard.stream(shown.request, **arguments):
            if isinstance(event, Released):
                released += event.text
            elif isinstance(event, Halted):
                refusal = event.refusal
            elif isinstance(event, Finished):
                answer = event.answer
    assert answer is not None, "a stream ends with Finished"
    with err.status("scanning the unguarded answer"):
        scan = guard.scan(shown.request, shown.prefill + unguarded)
    return DemoOutcome(unguarded, answer, released, refusal, scan, guard.policy.threshold)


def _record(model: str, shown: DemoSettings, outcome: DemoOutcome) -> dict[str, Any]:
    guarded = outcome.guarded
    return {
        "model": model,
        "request": shown.request,
        "prefill": shown.prefill,
        "unguarded": outcome.unguarded,
        "guarded": answer_record(guarded),
        "timeline": [check_record(check) for check in outcome.scan.checks],
        "threshold": outcome.threshold,
        "halted": guarded.halted,
        "halted_at_check": check_number(guarded) if guarded.halted else None,
        "depth": guarded.verdict.depth,
        "leak": guarded.leak,
        "ok": outcome.fault() is None,
    }


def _print(console: Console, model: str, shown: DemoSettings, outcome: DemoOutcome) -> None:
    guarded = outcome.guarded
    opening = (printable(shown.prefill), "dim")
    apart = "\n\n" if outcome.refusal else ""
    left = Text.assemble(opening, (printable(outcome.unguarded), "red"))
    right = Text.assemble(opening, (printable(outcome.released), "red"), apart, (outcome.refusal, "bold green"))
    console.print()
    console.print(Text.assemble(("model    ", "dim"), printable(model)), soft_wrap=True)
    console.print(Text.assemble(("request  ", "dim"), shown.request), soft_wrap=True)
    console.print(Text("attack   the client writes the beginning of the answer (dim), the model goes on", style="dim"))
    console.print(
        _side_by_side(
            console,
            Panel(left, title="unguarded", border_style="red", box=box.ROUNDED),
            Panel(right, title="guarded by anydepth", border_style="green", box=box.ROUNDED),
        )
    )
    console.print()
    console.print(Text("Risk over the depth of the unguarded answer", style="bold"))
    width = min(console.width, 100)
    console.print(timeline(outcome.scan.checks, outcome.threshold, opening=guarded.prefill_tokens, width=width))
    console.print()
    if guarded.halted:
        line = (
            f"leak {plural(guarded.leak, 'token')}, halted at check {check_number(guarded)} "
            f"(depth {guarded.verdict.depth}, score {guarded.verdict.score:.2f})"
        )
        console.print(Text(line, style="bold yellow" if guarded.leak else "bold green"), soft_wrap=True)


def _side_by_side(console: Console, left: RenderableType, right: RenderableType) -> RenderableType:
    if console.width < 70:
        return Group(left, right)
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(left, right)
    return grid
