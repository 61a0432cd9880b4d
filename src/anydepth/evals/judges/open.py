"""Open the judge that a user names."""

from pathlib import Path

from anydepth.errors import ConfigError
from anydepth.evals.judges.judge import TRAINING, Judge, Tables

FORMS = "refusal, text, classifier:PATH[#LABEL], classifier-pair:PATH[#LABEL] or openai:MODEL@BASE_URL"


def open_judge(spec: str, *, tables: Tables, folder: Path, seed: int) -> Judge:
    """The judge that `spec` means.

    Args:
        spec: `refusal` (refusal matcher only), `text` (refusal matcher and a classifier fitted on `probe_train`),
            `classifier:PATH[#LABEL]` (a sequence-classification model of the hub or a folder, which reads the answer;
            `classifier-pair:` gives it the request too) or `openai:MODEL@BASE_URL` (a rubric through an
            OpenAI-compatible endpoint).
        tables: Gives the table that the text classifier is fitted on.
        folder: Where a judge may keep what it made.
        seed: Seed of every choice that is drawn; no judge of today draws one.

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
        return RubricJudge(model, url, folder=folder)
    raise ConfigError(f"there is no judge {spec!r}; write {FORMS}")
