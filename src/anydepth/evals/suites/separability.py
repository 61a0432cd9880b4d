"""Find out how well the Safety Tokens' states separate harmful from harmless answers, by depth and layer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anydepth.backends.protocol import CONTENT, Site
from anydepth.conversations.dataset import Conversation
from anydepth.evals.answers.labelled import DEEP, other_sets, within_sources
from anydepth.evals.figure import Chart, Figure, Summary
from anydepth.evals.instruments.crossfit import END, FEWEST, FOLDS, Crossfit, Depth, View, at, whole
from anydepth.evals.instruments.projections import discriminant, principal
from anydepth.evals.suite import summed_up
from anydepth.probes.states.sites import sites_for
from anydepth.probes.states.store import answer_key

if TYPE_CHECKING:
    from anydepth.evals.context import Context

TITLE = "Do the Safety Tokens separate harmful from harmless answers?"
PAPER = (
    "Figures 2 and 4: a linear probe tells harmful from harmless answers by the states of the Safety Tokens at any "
    "depth, over many layers, better than by the states of other tokens."
)

_TWELFTHS, _QUICK_TWELFTHS = (1, 3, 5, 6, 7, 8, 9, 10), (2, 4, 6, 8)  # a pass ends at the highest block
_DEPTHS, _QUICK_DEPTHS = (5, 25, 50, 100, 150, 200, 300, 400), (5, 25, 50, 100, 150)
_CONTROLS = {"random": "random tokens", "user": "the user's header"}
_HEADER, _CONTENT, _SHUFFLED = "Safety Tokens", "no header (last content token)", "Safety Tokens, labels shuffled"


def run(context: "Context") -> Summary:
    """Collect states, cross-validate small probes on them, and compare depths, layers, tokens and controls."""
    quick = context.options.quick
    depths = _QUICK_DEPTHS if quick else _DEPTHS
    sites = _sites(context)
    sets = other_sets(context, context.count(100, 20))
    others = [row for rows in sets.values() for row in rows]
    answers = within_sources(context, context.count(100, 40), fewest=FEWEST, held_out=others)
    bench = Crossfit(
        context,
        _keyed(answers),
        {name: _keyed(rows) for name, rows in sets.items()},
        sites,
        depths,
        depths[-1],
    )
    found = _Found(bench)
    return summed_up(context, found.made, found.charts(), found.limits(), found.notes())


class _Found:
    """The scores as figures, charts and sentences."""

    def __init__(self, bench: Crossfit) -> None:
        self.bench = bench
        header = bench.context.backend.header
        self.header = View(_HEADER, "header", header.read_index)
        self.content = View(_CONTENT, "header", CONTENT)
        tokens = [View(f"{place} {text}", "header", place) for place, text in enumerate(header.tokens)]
        self.tokens = [View("last content token", "header", CONTENT), *tokens]
        self.ready = {suffix: bench.ready(suffix) for suffix in ("header", *_CONTROLS)}
        self.controls = [
            View(name, suffix, bench.control_token(suffix))
            for suffix, name in _CONTROLS.items()
            if not self.ready[suffix]["refused"]
        ]
        self.views = [self.header, self.content, *self.controls]
        self.best = {view: self._best_site(view) for view in self.views}
        self.site = self.best[self.header]
        self.made = list(self._figures())  # those of too few answers are left out

    def _best_site(self, view: View) -> Site:
        """The site with the largest AUROC of answers; the lowest of equals, which is the cheapest to read."""
        values = {}
        for number, site in enumerate(self.bench.sites):
            figure = self.bench.auroc("", whole(self.bench.scores(view, site)), {})
            values[site] = figure.value if figure and figure.value is not None else 0.0
            self.bench.context.told(f"fit {view.name}", number + 1, len(self.bench.sites))
        return max(self.bench.sites, key=lambda site: (values[site], -site.block))

    def _figures(self) -> Iterator[Figure]:
        for each in (
            self._separation(),
            self._by_depth(),
            self._transferred(),
            self._within_sources(),
            self._advantages(),
            self._by_token(),
            self._by_layer(),
            self._cells(),
        ):
            yield from (figure for figure in each if figure is not None)

    def _separation(self) -> Iterator[Figure | None]:
        for view in self.views:
            site = self.best[view]
            group = {"read": view.name, "layer": site.block}
            yield self.bench.auroc("separation", whole(self.bench.scores(view, site)), group)
        group = {"read": _SHUFFLED, "layer": self.site.block}
        yield self.bench.chance("separation", self.header, self.site, group)

    def _by_depth(self) -> Iterator[Figure | None]:
        for view in self.views:
            scores = self.bench.scores(view, self.best[view])
            for depth in (*(() if view in self.controls else (0,)), *self.bench.depths):
                group = {"depth": depth, "read": view.name}
                yield self.bench.auroc("separation by depth", at(scores, depth), group)

    def _transferred(self) -> Iterator[Figure | None]:
        for view in (self.header, self.content) if self.bench.held_out else ():
            scores = self.bench.transferred(view, self.best[view])
            for name in (name for name in self.bench.held_out if name != DEEP):
                pair = self._pair(whole(scores), name)
                yield self.bench.auroc("separation held out", pair, {"against": name, "read": view.name})
                if view == self.header:
                    yield self.bench.accuracy("accuracy held out", pair, {"against": name, "read": view.name})

    def _pair(self, values: Mapping[str, float], benign: str) -> dict[str, float]:
        """The values of the harmful held-out set and of one harmless one."""
        keys = self.bench.held_out[DEEP].keys() | self.bench.held_out[benign].keys()
        return {key: values[key] for key in sorted(keys & values.keys())}

    def _within_sources(self) -> Iterator[Figure | None]:
        values = whole(self.bench.scores(self.header, self.site))
        for source in sorted({row.source for row in self.bench.answers.values()}):
            own = {key: value for key, value in values.items() if self.bench.answers[key].source == source}
            yield self.bench.auroc("separation within a source", own, {"source": source})

    def _advantages(self) -> Iterator[Figure | None]:
        header = whole(self.bench.scores(self.header, self.site))
        for view in self.views[1:]:
            other = whole(self.bench.scores(view, self.best[view]))
            yield self.bench.advantage("advantage of the Safety Tokens", header, other, {"over": view.name})

    def _by_token(self) -> Iterator[Figure | None]:
        for view in self.tokens:
            values = whole(self.bench.scores(view, self.site))
            yield self.bench.auroc("separation by token", values, {"token": view.name})

    def _by_layer(self) -> Iterator[Figure | None]:
        for view in self.views:
            for site in self.bench.sites:
                group = {"layer": site.block, "read": view.name}
                yield self.bench.auroc("separation by layer", whole(self.bench.scores(view, site)), group)

    def _cells(self) -> Iterator[Figure | None]:
        """Depth by layer: one probe for all depths, and one per depth."""
        bench = self.bench
        places: list[Depth] = [0, *bench.depths, END]
        for number, site in enumerate(bench.sites):
            pooled = bench.scores(self.header, site)
            for depth in places:
                group = {"depth": depth, "layer": site.block}
                one = at(pooled, depth)
                yield bench.auroc("AUROC, one probe", one, group)
                yield bench.accuracy("accuracy, one probe", one, group)
                if bench.enough(one):
                    own = at(bench.scores(self.header, site, depth), depth)
                    yield bench.auroc("AUROC, a probe a depth", own, group)
                    yield bench.accuracy("accuracy, a probe a depth", own, group)
            bench.context.told("fit depths", number + 1, len(bench.sites))

    # -- charts --------------------------------------------------------------------------------------------------------

    def charts(self) -> Iterator[Chart]:
        """Lines, maps, bars and projections."""
        layer = f"layer {self.site.block}"
        one = "One probe for all depths, cross-validated by prompt"
        yield Chart(
            "line",
            "Separation by depth",
            ("separation by depth",),
            x="depth",
            by="read",
            caption=f"{one}; each read at its best layer (Safety Tokens: {layer}). Answers shorter than a depth are "
            "left out there. A control has no place in the prompt at depth 0.",
        )
        for name in ("AUROC, one probe", "AUROC, a probe a depth", "accuracy, one probe", "accuracy, a probe a depth"):
            yield Chart("heatmap", f"{name[0].upper()}{name[1:]}, by depth and layer", (name,), x="depth", by="layer")
        yield Chart("line", "Separation by layer", ("separation by layer",), x="layer", by="read", caption=f"{one}.")
        yield Chart(
            "bars",
            "Separation by token",
            ("separation by token",),
            x="token",
            caption=f"Each token of the header, and the last one before it, {layer}.",
        )
        yield Chart(
            "bars",
            "Separation within one source",
            ("separation within a source",),
            x="source",
            caption="The same scores among the answers of one source only: nothing is won by telling sources apart.",
        )
        if self.bench.held_out:
            caption = f"A probe fitted on all answers above, on sets it has not seen; harmful: {DEEP}."
            yield Chart("bars", "Held-out sets", ("separation held out",), x="against", by="read", caption=caption)
        for depth in (0, self.bench.depths[len(self.bench.depths) // 2], END):
            yield from self._projections(depth)

    def _projections(self, depth: Depth) -> Iterator[Chart]:
        row = self.bench.context.record(f"projections {self.site} {depth}", lambda: self._projected(depth))
        where = "the end" if depth == END else f"depth {depth}"
        about = f"layer {self.site.block}, read token"
        if row["enough"]:
            explained = f"Principal components without labels ({row['explained']:.0%} of the variance); {about}."
            yield Chart("scatter", f"Projection at {where}", caption=explained, points=row["principal"])
            line = f"Across: the line that separates best, fitted on other prompts. Up: first component; {about}."
            yield Chart("scatter", f"Discriminant at {where}", caption=line, points=row["discriminant"])

    def _projected(self, depth: Depth) -> dict[str, Any]:
        checks = self.bench.states(self.header, self.site, depth)
        if not self.bench.enough([str(key) for key in checks["answer"]]):
            return {"enough": False}
        harmful = checks["label"] == "harmful"
        folds = np.array([self.bench.folds[str(key)] for key in checks["answer"]])
        points, explained = principal(checks.states[:, 0])
        both = {"principal": points, "discriminant": discriminant(checks.states[:, 0], harmful, folds)}
        rounded = {
            name: {label: np.round(of[harmful == (label == "harmful")], 3).tolist() for label in ("harmful", "benign")}
            for name, of in both.items()
        }
        return {"enough": True, "explained": explained, **rounded}

    # -- words ---------------------------------------------------------------------------------------------------------

    def limits(self) -> Iterator[str]:
        """Where the claim does not hold, from the figures."""
        pooled = self._of("separation")[0]
        weak = [each for each in self._of("separation by depth") if each.group["read"] == _HEADER and _low(each) < 0.75]
        if weak:
            listed = "; ".join(f"{each.group['depth']}: {_number(each)}" for each in weak)
            yield f"One probe on the Safety Tokens cannot be said to reach an AUROC of 0.75 at these depths: {listed}."
        for figure in self._of("separation within a source"):
            if figure.interval and pooled.value is not None and figure.interval[1] < pooled.value:
                yield (
                    f"Within {figure.group['source']} alone the AUROC is {_number(figure)}, over all sources "
                    f"{_number(pooled)}: part of the separation tells sources apart."
                )
        for figure in self._of("separation held out"):
            below = figure.interval and pooled.value is not None and figure.interval[1] < pooled.value
            if below and figure.group["read"] == _HEADER:
                yield (
                    f"Against {figure.group['against']}, held out, the AUROC is {_number(figure)}, cross-validated "
                    f"{_number(pooled)}."
                )
        for figure in self._of("advantage of the Safety Tokens"):
            if _low(figure) <= 0:
                yield (
                    f"No advantage of the Safety Tokens over “{figure.group['over']}” can be seen: difference of the "
                    f"AUROCs {_number(figure)}."
                )
        yield from (
            f"The control “{name}” could not be read: {self.ready[suffix]['refused']}."
            for suffix, name in _CONTROLS.items()
            if self.ready[suffix]["refused"]
        )
        yield "Other models wrote the answers, and labels are their sources' own: some answers turn harmful late."

    def _of(self, name: str) -> list[Figure]:
        return [figure for figure in self.made if figure.name == name]

    def notes(self) -> tuple[str, ...]:
        """How it was measured."""
        bench, ready = self.bench, self.ready["header"]
        labels = [row.label for row in bench.answers.values()]
        sources = ", ".join(sorted({row.source for row in bench.answers.values()}))
        found = [
            f"{labels.count('harmful')} harmful and {labels.count('benign')} harmless answers of {sources}, the "
            f"sources that have both labels; {FOLDS} folds that share no prompt. Up to {bench.longest} tokens of an "
            f"answer are read; “{END}” is the last of them.",
            f"An answer's score is the mean logit of its checks from depth 1 on. No figure of fewer than {FEWEST} "
            "answers of a label. Layers are chosen by the cross-validated AUROC, each control at its own best; the "
            "held-out sets had no part in it.",
            f"Layers {', '.join(str(site.block) for site in bench.sites)} of "
            f"{bench.context.backend.identity.num_layers} ({self.site.module}).",
        ]
        if ready["skipped"]:
            found.append(f"{ready['skipped']} answers could not be read and are left out.")
        if ready["by_forks"]:
            found.append(f"Answers were forked depth by depth: {ready['by_forks']}.")
        return tuple(found)


def _low(figure: Figure) -> float:
    return np.inf if figure.interval is None else figure.interval[0]


def _number(figure: Figure) -> str:
    if figure.value is None or figure.interval is None:
        return "not known"
    return f"{figure.value:.2f} [{figure.interval[0]:.2f}, {figure.interval[1]:.2f}]"


def _sites(context: "Context") -> tuple[Site, ...]:
    blocks = context.backend.identity.num_layers
    twelfths = _QUICK_TWELFTHS if context.options.quick else _TWELFTHS
    usual = sorted({min(max(1, blocks * twelfth // 12), blocks - 1) for twelfth in twelfths})
    text = ",".join(map(str, usual))
    return sites_for(context.backend, context.value("layers", text, text))


def _keyed(rows: Sequence[Conversation]) -> dict[str, Conversation]:
    return {answer_key(row.messages, row.response): row for row in rows}
