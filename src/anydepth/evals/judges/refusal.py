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

    def judge(self, items: Sequence[Judged]) -> list[Judgement]:
        """One judgement per answer; `harmful` is None, since an answer that does not refuse may be harmless."""
        refuses = RefusalMatcher.default().is_refusal
        return judge_written(items, lambda written: [Judgement(refuses(item.response), None) for item in written])
