"""Decide what an answer is: a refusal, harm, or neither."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError

Tables = Callable[[str], list[Conversation]]
"""Gives the conversations of a named table, e.g. `probe_train`."""

TRAINING = "probe_train"
"""The table that the text classifier is fitted on."""

FORMS = "refusal, text, classifier:PATH[#LABEL], classifier-pair:PATH[#LABEL] or openai:MODEL@BASE_URL"


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer to judge.

    Attributes:
        prompt: The request as the user meant it: an attack's goal, not its wrapping.
        response: The answer, without what was forced: the words that the model answers for.
        prefill: The part of the answer that was forced. It is context for judges that read the whole answer; what it
            says is not held against the model.
    """

    prompt: str
    response: str
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of one answer.

    Attributes:
        refused: The answer refuses.
        harmful: The answer does harm: it complies with a harmful request. None if this judge cannot say. An answer that
            refuses and complies all the same (one after the other) may be both.
        score: How harmful, 0 to 1; None if this judge gives no number.
    """

    refused: bool
    harmful: bool | None
    score: float | None = None


EMPTY = Judgement(refused=False, harmful=False, score=0.0)
"""What every judge says of an answer without a word: it neither refuses nor harms."""


class Judge(Protocol):
    """Judges answers.

    Attributes:
        name: Written beside every figure that it decides, e.g. `refusal matcher`.
        says_harm: True if it can tell harm, not refusals only.
    """

    name: str
    says_harm: bool

    def judge(self, items: Sequence[Judged]) -> list[Judgement]:
        """One judgement an answer, in their order."""
        ...


def judge_written(items: Sequence[Judged], judge: Callable[[list[Judged]], Iterable[Judgement]]) -> list[Judgement]:
    """Have `judge` judge the answers that have a word in them; the others are `EMPTY`."""
    written = [item for item in items if item.response.strip()]
    found = iter(judge(written) if written else ())
    return [next(found) if item.response.strip() else EMPTY for item in items]


def open_judge(spec: str, *, tables: Tables, folder: Path, seed: int) -> Judge:
    """The judge that `spec` means.

    Args:
        spec: `refusal` (refusal matcher only), `text` (refusal matcher and a classifier fitted on `probe_train`),
            `classifier:PATH[#LABEL]` (a sequence-classification model of the hub or a folder, which reads the answer;
            `classifier-pair:` gives it the request too) or `openai:MODEL@BASE_URL` (a rubric through an
            OpenAI-compatible endpoint).
        tables: Gives the table that the text classifier is fitted on.
        folder: Where a judge may keep what it made.
        seed: Of every choice that is drawn; the judges there are draw none.

    Raises:
        ConfigError: `spec` has none of these forms, or the judge cannot be set up.
        MissingExtra: A package that this judge needs is not installed.
    """
    kind, colon, rest = spec.partition(":")
    if spec == "refusal":
        from anydepth.evals.judges.refusal import RefusalJudge

        return RefusalJudge()
    if spec == "text":
        from anydepth.evals.judges.text_judge import TextJudge

        return TextJudge.fit(tables(TRAINING))
    if kind in ("classifier", "classifier-pair") and rest:
        from anydepth.evals.judges.classifier import ClassifierJudge

        path, _, labels = rest.partition("#")
        return ClassifierJudge.load(path, labels=tuple(filter(None, labels.split(","))), pair=kind == "classifier-pair")
    if kind == "openai" and colon:
        from anydepth.evals.judges.rubric import RubricJudge

        model, _, url = rest.rpartition("@")
        if not model or not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"the judge {spec!r} does not name a model and an endpoint; "
                "write openai:MODEL@BASE_URL, e.g. openai:my-model@http://localhost:8000/v1"
            )
        return RubricJudge.connect(model, url, folder=folder)
    raise ConfigError(f"there is no judge {spec!r}; write {FORMS}")
