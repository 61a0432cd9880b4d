"""Draw the risk of one answer over its depth."""

import math
from collections.abc import Sequence

from rich.text import Text

from anydepth.types import CheckResult


def timeline(checks: Sequence[CheckResult], threshold: float, *, opening: int = 0, width: int = 80) -> Text:
    """Return one bar per check, with the threshold as a vertical line; what reaches it is red.

    The bar is the policy's statistic, which is what the threshold is compared with. A line says where a prefill of
    `opening` tokens ends.
    """
    top = max([1.0, threshold, *(check.statistic for check in checks if math.isfinite(check.statistic))])
    length = max(10, width - len("depth 00000   0.00"))
    mark = min(length - 1, round(threshold / top * length))
    out = Text()
    for before, check in zip((None, *checks), checks, strict=False):
        if opening and check.depth > opening and (before is None or before.depth <= opening):
            out.append(f"depth {opening:>5} ── the opening ends here, the model goes on\n", style="dim")
        out.append(f"depth {check.depth:>5} ", style="dim")
        if math.isfinite(check.statistic):
            reached = check.statistic >= threshold
            _bar(out, round(check.statistic / top * length), mark, length, "red" if reached else "green")
            out.append(f" {check.statistic:.2f}\n", style="bold red" if reached else "")
        else:
            _bar(out, 0, mark, length, "")
            out.append(" failed\n", style="bold red")
    out.append(" " * (len("depth 00000 ") + mark))
    out.append(f"↑ threshold {threshold:.2f}", style="dim")
    return out


def _bar(out: Text, filled: int, mark: int, length: int, style: str) -> None:
    for column in range(length):
        if column == mark:
            out.append("│", style="bold yellow")
        else:
            out.append("█" if column < filled else "·", style=style if column < filled else "dim")
