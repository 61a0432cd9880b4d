"""Keep a record of every answer that accounts for every token, and verify what was kept."""

from typing import TYPE_CHECKING

from anydepth.extras import exports

if TYPE_CHECKING:
    from anydepth.audit.reading import read_records
    from anydepth.audit.trail import Audit, AuditError, open_audit
    from anydepth.audit.verify import AuditReport, verify_audit

__all__ = ["Audit", "AuditError", "AuditReport", "open_audit", "read_records", "verify_audit"]
__getattr__ = exports(__name__, "anydepth.audit.trail", "anydepth.audit.verify", "anydepth.audit.reading")
