"""What the reward test kit says of a reward: a finding for each check, and the report of all."""

from dataclasses import dataclass, field
from typing import Literal

Status = Literal["passed", "warned", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One check: how it ended, in words, and the completion that shows it."""

    check: str
    status: Status
    message: str = ""
    completion: str = ""


@dataclass
class Report:
    """All findings about one reward."""

    reward: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def failed(self) -> list[Finding]:
        """The findings that should stop a run."""
        return [finding for finding in self.findings if finding.status == "failed"]

    @property
    def warned(self) -> list[Finding]:
        """The findings to think about."""
        return [finding for finding in self.findings if finding.status == "warned"]

    def __str__(self) -> str:
        lines = [f"reward {self.reward}"]
        for finding in self.findings:
            shown = f"  {finding.completion!r:.80}" if finding.completion else ""
            lines.append(f"{finding.status:8} {finding.check:18} {finding.message}{shown}".rstrip())
        return "\n".join(lines)
