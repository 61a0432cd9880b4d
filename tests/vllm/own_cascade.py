"""A cascade for the tiny model, named in the settings as `tests.vllm.own_cascade:made`, whose stages disagree."""

from collections.abc import Callable

from anydepth.detectors import Detector


class Words:
    """In place of `RefusalMatcher`: a random model's look-ahead counts as a refusal if its second word ends evenly."""

    openers = None

    def is_refusal(self, text: str) -> bool:
        words = text.split()
        return len(words) > 1 and words[1][-1] in "02468"

    def decided(self, text: str) -> bool | None:
        return self.is_refusal(text) if len(text.split()) > 2 else None


making: list[Callable[[], Detector]] = []
"""What makes the detector, the test's own: one."""


def made() -> Detector:
    (make,) = making
    return make()
