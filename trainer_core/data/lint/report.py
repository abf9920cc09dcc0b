"""What lint found: findings of three severities, for the terminal, for JSON and for the nodes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..text import some

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, about one or more files."""

    severity: Severity
    """error: training refuses the set, or cannot do what is asked of it; warning: it trains, and worse for it; note:
    something to know."""
    check: str
    """Name of the check, the same for all findings of a kind."""
    files: tuple[str, ...]
    """The files it is about, relative to `folder`, with `/`; files of another folder with their whole path."""
    message: str
    folder: str = ""
    """The data set's folder."""


@dataclass(frozen=True)
class LintReport:
    """Everything that lint found."""

    findings: tuple[Finding, ...]
    """The worst first; within a severity in the order of the checks."""
    images: int
    """Image files that were looked at, broken ones included."""
    folders: tuple[str, ...]
    """The data sets' folders."""
    clips: int = 0
    """How many of the images are clips."""

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.count("error")

    def count(self, severity: Severity) -> int:
        """Number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def of(self, check: str) -> list[Finding]:
        """The findings of a check."""
        return [finding for finding in self.findings if finding.check == check]

    def summary(self) -> str:
        """One line: "10 images: 1 error, 2 warnings"."""
        counts = [(self.count(severity), severity) for severity in SEVERITIES]
        told = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts if count)
        counted = [(self.images - self.clips, "image"), (self.clips, "clip")]
        kinds = [kind for kind in counted if kind[0]] or counted[:1]
        what = ", ".join(f"{count} {kind}{'' if count == 1 else 's'}" for count, kind in kinds)
        return f"{what}: {told or 'nothing to complain about'}"

    def as_dict(self) -> dict[str, Any]:
        """The report in plain types, for JSON."""
        return {
            "folders": list(self.folders),
            "images": self.images,
            **({"clips": self.clips} if self.clips else {}),
            "counts": {severity: self.count(severity) for severity in SEVERITIES},
            "checks": dict(Counter(finding.check for finding in self.findings)),
            "findings": [{**asdict(finding), "files": list(finding.files)} for finding in self.findings],
        }

    def rows(self, per_check: int = 10, names: int = 3) -> list[tuple[str, str, str, str]]:
        """Severity, check, files and message for a table; many findings of a check are cut short with a count."""
        rows: list[tuple[str, str, str, str]] = []
        seen: Counter[tuple[str, str]] = Counter()
        totals = Counter((finding.severity, finding.check) for finding in self.findings)
        for finding in self.findings:
            kind = (finding.severity, finding.check)
            seen[kind] += 1
            if seen[kind] <= per_check:
                rows.append((*kind, some(finding.files, names), finding.message))
            elif seen[kind] == per_check + 1:
                rows.append((*kind, "", f"and {totals[kind] - per_check} more of this kind"))
        return rows


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """The worst first, otherwise as they came."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
