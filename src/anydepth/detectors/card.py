"""Say what a probe belongs to and where it comes from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from anydepth.backends.protocol import ModelIdentity, Read, Reader, Site, last_header_token
from anydepth.errors import AnydepthError, ProbeError, UnsupportedModel
from anydepth.policy import policy_from

FORMAT_VERSIONS = ("2", "3", "4")
"""Versions of the artefact's layout that this package reads.

In 3 a probe may read means over answer tokens, in 4 it has Safety Tokens of its own.
"""

WAIVABLE = frozenset({"model", "template"})
"""Differences that a researcher may waive: fine-tuned weights, or a template with another default system prompt."""


@dataclass(frozen=True, slots=True)
class ProbeCard:
    """The metadata of a probe artefact.

    Attributes:
        model: The model that the probe was fitted on. An empty fingerprint (imported probes) means that the weights are
            not known; shape and architecture are compared instead.
        header_ids: The Safety Tokens at collection; those after the last read token are not used and may be left out.
            None of them is used where the probe has Safety Tokens of its own.
        reads: Which hidden states were read, in the order of the weight's rows.
        template_digest: Digest of the chat template, or None if it is not known (imported probes).
        dtype: Type that the model ran in when the states were collected, e.g. `bfloat16` or `bfloat16, 4-bit (awq)`.
        adapter: The adapter that the states were collected with, with the digest of its weights; None without one.
        policy: Record of the calibrated policy and its threshold, as `policy_record` writes it, or None.
        calibration: Evidence for the threshold: target, achieved, interval, data; and under `cascade` what
            `Cascade.calibrated` reads, if the probe was calibrated for one.
        sources: Training data, one mapping per source, with at least `name` and `licence`.
        created: When it was fitted, ISO 8601.
        versions: Versions of the packages that fitted it.
        seed: Seed of the fit.
        notes: Further remarks for a reader.
        drift: What the probe was measured to be worth on altered weights, a record for each, as
            `anydepth.probes.fitting.drift` makes them: at least `weights`, `kind`, `sides` and `score_difference`.
        safety_tokens: Number of trained Safety Tokens that the artefact holds: they are appended in the place of the
            header, and a read's token is an index among them. 0 for a probe that reads the template's header.
    """

    model: ModelIdentity
    header_ids: tuple[int, ...]
    reads: tuple[Read, ...]
    template_digest: str | None = None
    dtype: str | None = None
    policy: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Mapping[str, str], ...] = ()
    created: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    notes: str = ""
    safety_tokens: int = 0
    adapter: str | None = None
    drift: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.reads or len(set(self.reads)) < len(self.reads):
            raise ProbeError(
                f"reads is {[str(read) for read in self.reads]}; a probe reads at least one state, none twice"
            )
        if self.safety_tokens and not all(0 <= read.token < self.safety_tokens for read in self.reads):
            raise ProbeError(
                f"reads is {[str(read) for read in self.reads]}; a probe with {self.safety_tokens} trained Safety "
                f"Tokens reads these alone, 0 to {self.safety_tokens - 1}"
            )
        if not self.safety_tokens and self.last_token >= len(self.header_ids):
            raise ProbeError(
                f"reads has the token {self.last_token}, the header has {len(self.header_ids)} tokens; "
                "the artefact is damaged, fit it again with `anydepth fit`"
            )

    @property
    def last_token(self) -> int:
        """The last header token, or trained Safety Token, that is read; -1 if none is."""
        return last_header_token(self.reads)

    @property
    def format_version(self) -> str:
        """The oldest version of the layout that can hold this card: releases that do not know it all refuse it."""
        if self.safety_tokens:
            return "4"
        return "3" if any(read.is_mean for read in self.reads) else "2"

    @property
    def probe_ids(self) -> tuple[int, ...]:
        """The header up to the last read token: no later token can change a state that is read.

        Empty where the probe has Safety Tokens of its own.
        """
        return () if self.safety_tokens else self.header_ids[: self.last_token + 1]


def card_record(card: ProbeCard) -> dict[str, Any]:
    """The JSON-ready record that `card_from` reads back; without the newer fields where they are empty."""
    record = {**asdict(card), "reads": [str(read) for read in card.reads]}
    return {name: value for name, value in record.items() if value or name not in _LEFT_OUT}


def card_from(record: Mapping[str, Any]) -> ProbeCard:
    """Build a card from its record; ProbeError names the field that is missing or wrong.

    Fields that this version does not have are left out: a new one is added without a new format version.
    """
    known = {entry.name for entry in fields(ProbeCard)}
    values = {name: value for name, value in record.items() if name in known}
    try:
        _check_kinds(values)
        values["model"] = ModelIdentity(**values["model"])
        values["reads"] = tuple(Read.parse(read) for read in values["reads"])
        values["header_ids"] = tuple(values["header_ids"])
        values["sources"] = tuple(values.get("sources", ()))
        values["drift"] = tuple(map(check_drift, values.get("drift", ())))
        card = ProbeCard(**values)
        if card.policy is not None:
            policy_from(card.policy)
    except KeyError as error:
        raise ProbeError(f"the probe's card has no {error}; fit it again with `anydepth fit`") from error
    except (TypeError, AnydepthError) as error:
        raise ProbeError(f"the probe's card is not usable: {error}") from error
    return card


_LEFT_OUT = ("adapter", "drift")
"""Fields that a record lacks where they are empty, as records of before there were any: its digest stays the same."""

_KINDS = {
    **dict.fromkeys(("model", "policy", "calibration", "versions"), Mapping),
    **dict.fromkeys(("reads", "header_ids", "sources", "drift"), list),
    **dict.fromkeys(("template_digest", "adapter"), str),
    "safety_tokens": int,
}
_NULLABLE = {"policy", "template_digest", "adapter"}
_ITEMS = (
    ("reads", "a read", str),
    ("header_ids", "a header id", int),
    ("sources", "a source", Mapping),
    ("drift", "a drift record", Mapping),
)


def _check_kinds(values: Mapping[str, Any]) -> None:
    for name, kind in _KINDS.items():
        if name in values and (values[name] is not None or name not in _NULLABLE):
            _check_kind(name, values[name], kind)
    for name, what, kind in _ITEMS:
        for each in values.get(name, ()):
            _check_kind(what, each, kind)
    for name in ("hidden_size", "num_layers"):
        _check_kind(f"model.{name}", values["model"].get(name), int)


def _check_kind(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, not a {kind.__name__}")


def check_drift(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a drift record in which everything is that a warning tells; TypeError names what is not."""
    for name, kind in (("weights", str), ("kind", str), ("sides", Mapping), ("score_difference", Mapping)):
        _check_kind(f"drift: {name}", record.get(name), kind)
    scores = [record["score_difference"].get(name) for name in ("mean", "largest")]
    if not all(isinstance(each, int | float) for each in scores):
        raise TypeError(f"drift: score_difference has {scores!r} as mean and largest, not two numbers")
    for side in ("harmful", "benign"):
        found = record["sides"].get(side)
        _check_kind(f"drift: sides.{side}", found, Mapping)
        for name in ("answers", "before", "halted"):
            _check_kind(f"drift: sides.{side}.{name}", found.get(name), int)
        numbers = (found.get("difference"), *(found.get("interval") or (None,)))
        if not all(isinstance(each, int | float) for each in numbers) or len(numbers) != 3:
            raise TypeError(f"drift: sides.{side} has the difference and interval {numbers!r}, not three numbers")
    return record


def mismatches(card: ProbeCard, backend: Reader) -> dict[str, str]:
    """What of `backend` differs from the card: what it is -> both values and the remedy; empty if the probe fits.

    A hub id that differs is no mismatch if the fingerprints are equal: names are for people, and a converted copy of a
    checkpoint has the name of a folder.
    """
    found = {
        "hidden_size": _differ("hidden size", card.model.hidden_size, backend.identity.hidden_size),
        "model": _model(card.model, backend.identity),
        "template": card.template_digest and _differ("chat template", card.template_digest, backend.template.digest),
        # the probe's own read token: which one the template prefers does not matter
        "header": _header(card, tuple(backend.header.ids)),
        "site": next(filter(None, (_site(read.site, backend) for read in card.reads)), None),
    }
    return {name: message for name, message in found.items() if message}


def _differ(what: str, want: object, got: object, remedy: str = "fit a new one with `anydepth fit`") -> str | None:
    return None if want == got else f"{what}: the probe was fitted with {want}, the model has {got}; {remedy}"


def _header(card: ProbeCard, ids: tuple[int, ...]) -> str | None:
    if card.safety_tokens:  # its own tokens: whatever the header is, but room for no more than the header is kept
        what = f"header: the probe has {card.safety_tokens} trained Safety Tokens, the model's header {len(ids)} tokens"
        return f"{what}; train fewer with `anydepth fit`" if card.safety_tokens > len(ids) else None
    return _differ("header up to the read token", card.probe_ids, ids[: card.last_token + 1])


def _model(want: ModelIdentity, got: ModelIdentity) -> str | None:
    if want.fingerprint and want.fingerprint == got.fingerprint:
        return None
    seen = (
        f"{each.name} (weights {each.fingerprint or 'unknown'})"
        if want.fingerprint
        else f"{each.model_type} with {each.num_layers} layers of width {each.hidden_size}"
        for each in (want, got)
    )
    return _differ("model", *seen, remedy=f"load {want.name}, or fit a new one with `anydepth fit`")


def _site(site: Site, backend: Reader) -> str | None:
    try:
        backend.check_site(site)
    except UnsupportedModel as error:
        return f"site: the probe reads {site}, this model does not have it ({error}); fit a new one with `anydepth fit`"
    return None
