"""Look ahead while the states of the Safety Tokens are edited."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from anydepth.backends.protocol import Read, Site
from anydepth.conversations.dataset import Conversation
from anydepth.detectors import LinearProbe, Rethink
from anydepth.detectors.detector import require_header
from anydepth.errors import ConfigError
from anydepth.probes.states.collect import collect_into
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.store import Checks, answer_key
from anydepth.schedule import Listed
from anydepth.templates.template import Prompt
from anydepth.types import Score

if TYPE_CHECKING:
    from anydepth.backends.transformers.steer import Edit
    from anydepth.evals.context import Context

PAIRS = 12
"""Harmful answers, and as many harmless ones, in one batch; patches are exchanged within it."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One edit of the header's states.

    Attributes:
        edit: `none`, `ablate at the site`, `ablate from the site on`, `steer`, `patch, other label` or `patch, same
            label`.
        direction: `probe`, or `random 1` and so on; `none` where no direction is used.
        strength: Length of a `steer` step, in gaps between the means of harmful and harmless answers.
    """

    edit: str
    direction: str = "none"
    strength: float = 0.0

    @property
    def key(self) -> str:
        """The arm's name in records."""
        return f"{self.edit}/{self.direction}/{self.strength:g}"


NONE = Arm("none")
ABLATIONS = ("ablate at the site", "ablate from the site on")
PATCHES = ("patch, other label", "patch, same label")


def arms(strengths: Sequence[float], random: int) -> list[Arm]:
    """All edits: without any, by the probe's direction, by `random` others of the same length, and patches."""
    directions = ["probe", *(f"random {number + 1}" for number in range(random))]
    return [
        NONE,
        *(Arm(edit, direction) for edit in ABLATIONS for direction in directions),
        *(Arm("steer", direction, strength) for strength in strengths for direction in directions),
        *map(Arm, PATCHES),
    ]


def largest_read(probe: LinearProbe) -> tuple[Read, np.ndarray, float]:
    """The header read with the largest share of the weight's squared norm, its direction, and that share.

    The direction is float32 `[hidden_size]`.

    Raises:
        ConfigError: The probe reads no header token.
        CapabilityError: The probe has Safety Tokens of its own.
    """
    require_header(probe, "an intervention")
    squares = (probe.weight.astype(np.float64) ** 2).sum(1)
    places = [place for place, read in enumerate(probe.reads) if read.token >= 0]
    if not places:
        raise ConfigError(
            f"the probe reads {', '.join(map(str, probe.reads))}: none of the Safety Tokens, so there is nothing to "
            "edit; give --probe with one that reads the header"
        )
    best = max(places, key=lambda place: squares[place])
    return probe.reads[best], probe.weight[best], float(squares[best] / squares.sum())


@dataclass
class Interventions:
    """The answers whose header is edited, and all that the edits need.

    Attributes:
        context: The context of the suite.
        harmful: Harmful answers.
        benign: As many harmless answers.
        depth: The depth at which the header is appended, beside depth 0.
        tokens: Length of a look-ahead.
    """

    context: "Context"
    harmful: Sequence[Conversation]
    benign: Sequence[Conversation]
    depth: int
    tokens: int

    @cached_property
    def read(self) -> Read:
        """The read of the probe whose direction is tested."""
        return largest_read(self.context.probe)[0]

    @cached_property
    def line(self) -> tuple[np.ndarray, np.ndarray]:
        """The probe's direction at the site and in the stream, both float32 `[hidden_size]` of length 1."""
        from anydepth.backends.transformers import steer

        weight, at = largest_read(self.context.probe)[1], self._checks["depth"] == self.depth
        states = self._streams(self._checks.where(at))[:, self.read.token]
        return steer.unit(weight), steer.in_stream(self.context.backend.model, self.read.site, weight, states)

    def direction(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The direction called `name`, at the site and in the stream, float32 `[hidden_size]`; random by seed."""
        from anydepth.backends.transformers import steer

        if name == "probe":
            return self.line
        rng = np.random.default_rng(self.context.digest("direction", name))
        drawn = steer.unit(rng.standard_normal(self.context.backend.identity.hidden_size))
        return drawn, drawn

    @cached_property
    def scale(self) -> dict[str, float]:
        """Mean of harmless answers at the site, the gap up to harmful ones there and in the stream, a state's length.

        Measured at the suite's depth, of the read token; depth 0 is steered in the same steps.
        """
        at_site, in_stream = self.line
        checks = self._checks.where(self._checks["depth"] == self.depth)
        harmful = checks["label"] == "harmful"
        read = checks.states[:, -1] @ at_site
        states = self._streams(checks)[:, self.read.token]
        stream = states @ in_stream
        found = {
            "benign": float(read[~harmful].mean()),
            "site": float(read[harmful].mean() - read[~harmful].mean()),
            "stream": float(stream[harmful].mean() - stream[~harmful].mean()),
            "length": float(np.linalg.norm(states, axis=1).mean()),
        }
        for name in ("site", "stream"):
            if found[name] <= 0:
                raise ConfigError(
                    f"suite {self.context.suite}: along the probe's direction harmful answers lie {found[name]:.3g} "
                    "from harmless ones, not above them, so there is no gap to steer by; give --probe with one that "
                    "tells them apart, or more answers (--limit)"
                )
        return found

    def run(self, wanted: Sequence[Arm]) -> None:
        """Make every record that is missing: answer × depth × arm."""
        pairs = list(zip(self.harmful, self.benign, strict=True))
        # of nearly equal size: a batch of one pair could not exchange states within a label
        size = -(-len(pairs) // -(-len(pairs) // PAIRS))
        chunks = [pairs[begin : begin + size] for begin in range(0, len(pairs), size)]
        done, total = 0, 2 * len(chunks) * len(wanted)
        for depth in (0, self.depth):
            for chunk in chunks:
                rows = [side for pair in chunk for side in pair]
                for _ in self._batch(rows, depth, wanted):
                    done += 1
                    self.context.told("edit", done, total)

    def record(self, row: Conversation, depth: int, arm: Arm) -> Mapping[str, Any]:
        """What came of one edit of one answer."""
        return self.context.records.rows[_key(row, depth, arm)]

    def _batch(self, rows: Sequence[Conversation], depth: int, wanted: Sequence[Arm]) -> Iterator[None]:
        missing = [arm for arm in wanted if any(_key(row, depth, arm) not in self.context.records for row in rows)]
        yield from (None for _ in range(len(wanted) - len(missing)))
        if not missing:
            return
        session = self.context.backend.open([self._prompt(row, depth) for row in rows], max_new_tokens=1)
        try:
            points = [session.current(row) for row in range(len(rows))]
            session.hidden_states(points, [self.read])  # fills the cache, which no edit may reach
            for arm in missing:
                edits = self._edits(arm, rows, depth)
                with self._hooks(edits):
                    scores = Rethink(max_new_tokens=self.tokens).check(session, points)
                with self._hooks(edits):
                    states = session.hidden_states(points, [self.read])[:, 0]
                for row, score, state in zip(rows, scores, states, strict=True):
                    self._write(row, depth, arm, score, state)
                yield
        finally:
            session.close()

    @contextmanager
    def _hooks(self, edits: Mapping[Site, "Edit"]) -> Iterator[None]:
        from anydepth.backends.transformers.steer import edited

        backend = self.context.backend
        with ExitStack() as stack:
            for site, edit in edits.items():
                stack.enter_context(edited(backend.model, site, edit, range(len(backend.header.ids))))
            yield

    def _edits(self, arm: Arm, rows: Sequence[Conversation], depth: int) -> dict[Site, "Edit"]:
        """The edit per site."""
        from anydepth.backends.transformers import steer

        into = steer.entry(self.read.site)
        if arm == NONE:
            return {}
        if arm.edit in PATCHES:
            return {into: steer.put(self._counterparts(rows, depth, same=arm.edit == "patch, same label"))}
        at_site, in_stream = self.direction(arm.direction)
        if arm.edit == "steer":
            return {into: steer.add(arm.strength * self.scale["stream"] * in_stream)}
        if arm.edit == "ablate at the site":
            return {self.read.site: steer.ablate(at_site)}
        last = self.context.backend.identity.num_layers
        return {Site(block, "output"): steer.ablate(in_stream) for block in range(into.block, last)}

    def _counterparts(self, rows: Sequence[Conversation], depth: int, *, same: bool) -> np.ndarray:
        """States of the header of other rows, `[rows, header, hidden_size]`: harmful and harmless ones alternate."""
        order = [(row + 2) % len(rows) if same else row ^ 1 for row in range(len(rows))]
        checks = self._checks.where(self._checks["depth"] == depth)
        place = {key: number for number, key in enumerate(checks["answer"])}
        return self._streams(checks)[[place[_answer(rows[number])] for number in order]]

    def _prompt(self, row: Conversation, depth: int) -> Prompt:
        """The text before the header; at depth 0 the generation prompt is left out, since the header stands for it."""
        prompt = self.context.prompt(row, row.response)
        if depth:
            return Prompt(prompt.ids[: prompt.start + depth], depth)
        # a prefill of one token, so that the session appends the header as it does later on
        return Prompt(prompt.ids[: self.context.backend.template.header_start(prompt)], 1)

    def _write(self, row: Conversation, depth: int, arm: Arm, score: Score, state: np.ndarray) -> None:
        key, text = _key(row, depth, arm), score.detail or ""
        words = text.split()
        if key not in self.context.texts:
            self.context.texts.write(key, {"id": key, "text": text})
        if key not in self.context.records:
            found = {
                "answer": row.id,
                "depth": depth,
                "edit": arm.key,
                "refused": score.value == 1,
                "projection": float(state @ self.line[0] - self.scale["benign"]) / self.scale["site"],
                "distinct": len(set(words)) / len(words) if words else 0.0,
            }
            self.context.records.write(key, {"id": key, **found})

    # -- states without an edit ----------------------------------------------------------------------------------------

    def _streams(self, checks: Checks) -> np.ndarray:
        """Stream states of all header tokens, `[checks, header, hidden_size]`."""
        return checks.states[:, : len(self.context.backend.header.ids)]

    @cached_property
    def _checks(self) -> Checks:
        """States of all answers at both depths: the stream's of each header token, then the read's."""
        from anydepth.backends.transformers.steer import entry

        backend, context, site = self.context.backend, self.context, self.read.site
        sites = tuple(dict.fromkeys((entry(site), site)))
        tokens = tuple(range(len(backend.header.ids)))
        plan = CollectPlan(sites, tokens=tokens, schedule=Listed((self.depth,)), longest=self.depth)
        store, done = collect_into(
            context.folder / "states" / context.suite,
            backend,
            [*self.harmful, *self.benign],
            plan,
            progress=lambda answers, total, _: context.told("read", answers, total),
        )
        if done.skipped:
            raise ConfigError(
                f"suite {context.suite}: {len(done.skipped)} answers cannot be read, the first of them "
                f"{done.skipped[0][0]}: {done.skipped[0][1]}"
            )
        checks = store.read([(entry(site), token) for token in tokens])
        reads = store.read([(site, self.read.token)])
        checks = replace(checks, states=np.concatenate([checks.states, reads.states], 1))
        return checks.where(np.lexsort((checks["depth"], checks["answer"])))


def _answer(row: Conversation) -> str:
    return answer_key(row.messages, row.response)


def _key(row: Conversation, depth: int, arm: Arm) -> str:
    return f"{row.label} {row.id}@{depth}/{arm.key}"
