"""Read what a recipe says about choosing, calibrating and measuring, and see that its data allow it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.intervals import answers_needed, check_share, percent
from anydepth.policy import policy_from
from anydepth.probes.recipe.pairs import Pair, half, one_a_prompt
from anydepth.probes.recipe.recipe import TRAIN, Gathered, Recipe, held_out_of
from anydepth.probes.recipe.recipe_part import RecipePart
from anydepth.probes.states.store import answer_key

CHOSEN, REPORTED = 0, 1
"""The half of the held-out prompts that candidates are chosen on, and the one that the report is of."""

_KEYS = {
    "choose": ("pairs", "policies", "by"),
    "calibrate": ("benign", "target", "contract", "confidence"),
    "measure": ("pairs", "leave_out"),
}
_BY = ("auroc", "halted")
_CONTRACTS = ("rate", "guarantee")


@dataclass(frozen=True, slots=True)
class Choices:
    """What a recipe says about choosing, calibrating and measuring.

    Attributes:
        pairs: Held-out sets that the candidates are compared by.
        policies: Records of the policies to try.
        benign: Held-out sets that the threshold is set on.
        target: False-positive rate that it is set for.
        measured: Held-out sets of the report.
        by: What the choice is made by: `auroc`, or `halted`, the share of the harmful answers of a pair that is halted
            when the threshold is set at the target on the benign sets.
        contract: What the threshold promises: `rate`, the target on the answers that it is set on, or `guarantee`, the
            target on others, with `confidence`, of which one answer a prompt is drawn.
        confidence: Confidence of the bounds and of the guarantee.
        leave_out: Refit the chosen candidate without one training source after the other, for the report.
        crossed: Names of the measured pairs whose requests say nothing of the answers, see `is_crossed`.
    """

    pairs: tuple[Pair, ...]
    policies: tuple[Mapping[str, Any], ...]
    benign: tuple[str, ...]
    target: float
    measured: tuple[Pair, ...]
    by: str = "auroc"
    contract: str = "rate"
    confidence: float = 0.95
    leave_out: bool = False
    crossed: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe) -> "Choices":
        """Read and check the tables of `recipe`; ConfigError says what is wrong with them."""
        for name, known in _KEYS.items():
            if unknown := sorted(set(getattr(recipe, name)) - set(known)):
                raise ConfigError(f"recipe {recipe.source}: [{name}] has {unknown[0]!r}; it takes {', '.join(known)}")
        pairs = tuple(Pair.of(record) for record in recipe.choose.get("pairs", ()))
        if not pairs:
            raise ConfigError(f"recipe {recipe.source} has no [choose] pairs: nothing says which candidate is the best")
        policies = tuple(recipe.choose.get("policies", ({"name": "threshold"},)))
        if not policies:
            raise ConfigError(f"recipe {recipe.source}: [choose] policies is empty; name one, or leave the key out")
        for record in policies:
            policy_from(record)
        benign = recipe.calibrate.get("benign", ())
        benign = (benign,) if isinstance(benign, str) else tuple(benign)
        if not benign:
            raise ConfigError(
                f"recipe {recipe.source} has no [calibrate] benign; name the held-out sets of the threshold"
            )
        target = check_share("[calibrate] target", recipe.calibrate.get("target", 0.005))
        measured = tuple(Pair.of(record) for record in recipe.measure.get("pairs", ())) or pairs
        confidence = check_share("[calibrate] confidence", recipe.calibrate.get("confidence", 0.95))
        by = _one_of("[choose] by", recipe.choose.get("by", "auroc"), _BY, recipe)
        contract = _one_of("[calibrate] contract", recipe.calibrate.get("contract", "rate"), _CONTRACTS, recipe)
        leave_out = _one_of("[measure] leave_out", recipe.measure.get("leave_out", False), (True, False), recipe)
        crossed = tuple(pair.name for pair in measured if is_crossed(pair, recipe))
        return cls(pairs, policies, benign, target, measured, by, contract, confidence, leave_out, crossed)

    def check(self, recipe: Recipe, gathered: Sequence[Gathered]) -> None:
        """Refuse conversations that no probe can be fitted, chosen, calibrated or measured on.

        All of it is seen from labels and prompts: before a model is loaded, not after hours of reading.

        Raises:
            ConfigError: A set is not there, the training parts lack a label, or a half of the held-out prompts has no
                answers of a label that is needed there.
        """
        rows: dict[str, list[Conversation]] = {}
        for each in gathered:
            rows.setdefault(each.part.split, []).extend(each.conversations)
        counts = {label: sum(row.label == label for row in rows.get(TRAIN, ())) for label in ("harmful", "benign")}
        if not all(counts.values()):
            raise ConfigError(
                f"recipe {recipe.source}: the training parts have {counts['harmful']} harmful and {counts['benign']} "
                "benign answers; a probe needs both. Give labelled answers of both kinds"
            )
        for splits, label, part in self._needed():
            for split in splits:
                if split not in rows or split == TRAIN:
                    there = ", ".join(map(repr, sorted(rows.keys() - {TRAIN}))) or "none"
                    raise ConfigError(f"recipe {recipe.source}: there is no held-out set {split!r}; there is {there}")
            keys = [row.prompt_key for split in splits for row in rows[split] if row.label == label]
            if not half(keys, part).any():
                use = "chosen on" if part == CHOSEN else "reported on"
                raise ConfigError(
                    f"recipe {recipe.source}: {' and '.join(map(repr, splits))} has {len(keys)} {label} answers, none "
                    f"of them to the half of the prompts that is {use}; hold out answers to more prompts, of both "
                    "labels"
                )

        if self.contract == "guarantee":
            benign = [row for split in self.benign for row in rows[split] if row.label == "benign"]
            reported = half([row.prompt_key for row in benign], REPORTED)
            count = _prompts([row for row, mine in zip(benign, reported, strict=True) if mine])
            needed = answers_needed(self.target, self.confidence)
            if count < needed:
                raise ConfigError(
                    f"recipe {recipe.source}: [calibrate] contract is 'guarantee', which needs {needed} benign answers "
                    f"to different prompts for a target of {percent(self.target)}; the half that nothing is chosen on "
                    f'has {count}. Give more, a larger target, or contract = "rate"'
                )

    def _needed(self) -> Iterable[tuple[tuple[str, ...], str, int]]:
        """Splits, label and half: what must be there together."""
        both = (CHOSEN, REPORTED)
        for pair in self.pairs:
            yield pair.harmful, "harmful", CHOSEN
            yield pair.benign, "benign", CHOSEN
        for pair in self.measured:
            yield from (((name,), "harmful", REPORTED) for name in pair.harmful)
            yield from (((name,), "benign", part) for name in pair.benign for part in both)
        yield from ((self.benign, "benign", part) for part in both)


def _prompts(rows: Sequence[Conversation]) -> int:
    """Number of the answers that share no prompt (`one_a_prompt`)."""
    answers = [answer_key(row.messages, row.response) for row in rows]
    return int(one_a_prompt(answers, [row.prompt_key for row in rows], [row.host_key for row in rows]).sum())


def is_crossed(pair: Pair, recipe: Recipe) -> bool:
    """Whether the requests of a pair say nothing of the answers.

    All answers of one side are moved (`swap` or `splice`), and so are those of the other, or the prompts that they are
    put under are just those of the other side.
    """
    sides = [[part for part in recipe.parts if part.split in names] for names in (pair.harmful, pair.benign)]
    moved = [
        bool(parts) and _all_moved(parts, names, recipe)
        for parts, names in zip(sides, (pair.harmful, pair.benign), strict=True)
    ]
    hosts = [{name for part in parts for name in part.under} for parts in sides]
    own = [{part.name for part in parts} for parts in sides]
    return all(moved) or any(moved[n] and hosts[n] == own[1 - n] for n in (0, 1))


def _all_moved(parts: Sequence[RecipePart], splits: Sequence[str], recipe: Recipe) -> bool:
    """Whether `parts` are all that is in `splits`, and their answers are moved; what is held out of a part is not."""
    kept = {part.split for part in parts} >= set(splits)
    plain = {held_out_of(part.name) for part in recipe.parts if part.hold_out}
    return kept and plain.isdisjoint(splits) and all(part.augment in ("swap", "splice") for part in parts)


def _one_of(name: str, value: Any, known: Sequence[Any], recipe: Recipe) -> Any:
    if not any(value is each or (isinstance(value, str) and value == each) for each in known):
        named = " or ".join(str(each).lower() if isinstance(each, bool) else each for each in known)
        raise ConfigError(f"recipe {recipe.source}: {name} is {value!r}; choose {named}")
    return value
