"""How findings are told: a line with a verdict for each, or JSON; and the exit code that they come to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from ltx2.models.checkup import Finding


def tell(findings: Sequence[Finding], as_json: bool) -> int:
    """Print findings; 0 when nothing is wrong, else 1. `note` says that nothing is, but that nothing is promised either."""
    wrong = [finding for finding in findings if not finding.ok]
    if as_json:
        print(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}))
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            print(f"{_verdict(finding):<5}  {finding.subject.ljust(width)}  {finding.text}")
    return 1 if wrong else 0


def _verdict(finding: Finding) -> str:
    if not finding.ok:
        return "WRONG"
    return "note" if finding.note else "ok"
