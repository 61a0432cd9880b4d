"""The account of one answer."""

import time
from itertools import count

from anydepth import Every, GuardConfig, Threshold
from anydepth.audit.answer import Account
from anydepth.audit.trail import open_audit
from anydepth.audit.verify import verify_audit
from anydepth.settings import AuditTable
from anydepth.templates.template import Prompt
from anydepth.types import CheckResult, Released


def test_a_clock_that_is_set_back_does_not_put_a_release_before_its_check(tmp_path, monkeypatch):
    hours = count(1_800_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(hours)))
    audit = open_audit(AuditTable(kind="jsonl", path=str(tmp_path / "trail")))
    guard = GuardConfig(policy=Threshold(0.5), schedule=Every(4))
    account = Account(audit, "a", 0, "chat", "m", Prompt((1, 2, 3)), guard, frozenset())
    for depth in (0, 4, 8):
        account.checked(CheckResult(depth, 0.1, 0.1))
        if depth:
            account.released(Released("text", (7, 7, 7, 7), depth))
    account.broken("cancelled")
    account.broken("error")  # it is over already
    audit.close()
    report = verify_audit(tmp_path / "trail")
    assert report.ok and report.answers == {"cancelled": 1} and report.released == 8, report.violations
