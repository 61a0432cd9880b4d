"""What a suite is, and which there are."""

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from anydepth.errors import ConfigError
from anydepth.evals.figure import Chart, Figure, Summary

if TYPE_CHECKING:
    from anydepth.evals.context import Context

SUITES: tuple[str, ...] = (
    "deep-prefill",
    "attacks",
    "adaptive",
    "over-refusal",
    "utility",
    "separability",
    "interval",
    "erosion",
    "multi-turn",
    "actions",
    "thoughts",
    "languages",
    "causal",
    "latency",
)
"""Names of the suites, in the order of the report; the module of one has its name, with underscores."""

QUICK: tuple[str, ...] = ("separability", "deep-prefill", "over-refusal", "latency")
"""Suites of `--quick` without `--suite`: what to look at first on a new model."""


class Suite(Protocol):
    """One claim of the paper, measured. A suite is a module of this package with these names.

    Attributes:
        TITLE: Headline of the report's section.
        PAPER: The claim and where the paper makes it.
    """

    TITLE: str
    PAPER: str

    def run(self, context: "Context") -> Summary:
        """Measure; records that are there already are not made again, so that a killed run goes on."""
        ...


def load_suite(name: str) -> Suite:
    """The suite called `name`; ConfigError lists those there are."""
    if name not in SUITES:
        raise ConfigError(f"there is no suite {name!r}; choose from {', '.join(SUITES)}")
    return import_module(f"anydepth.evals.suites.{name.replace('-', '_')}")  # pyright: ignore[reportReturnType]


def summed_up(
    context: "Context",
    figures: Iterable[Figure],
    charts: Iterable[Chart],
    limits: Iterable[str],
    notes: Iterable[str],
) -> Summary:
    """What the suite of `context` found, under its own headline and claim."""
    suite = load_suite(context.suite)
    return Summary(context.suite, suite.TITLE, suite.PAPER, tuple(figures), tuple(charts), tuple(limits), tuple(notes))
