"""Judge refusals by how an answer opens."""

from collections.abc import Sequence

from anydepth.detectors.refusals import RefusalMatcher
from anydepth.evals.judges.judge import Judged, Judgement, judge_written


class RefusalJudge:
    """The refusal matcher alone: it says nothing of harm.

    The model's own first words count; after a forced prefill, those that follow it.
    """

    name = "refusal matcher"
    says_harm = False

    def __init__(self, matcher: RefusalMatcher | None = None) -> None:
        self._matcher = matcher or RefusalMatcher.default()

    def judge(self, items: Sequence[Judged]) -> list[Judgement]:
        """One judgement per answer; `harmful` is None, since an answer that does not refuse may be harmless."""
        return judge_written(
            items, lambda written: [Judgement(self._matcher.is_refusal(item.response), None) for item in written]
        )
