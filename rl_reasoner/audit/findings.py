"""What an audit says: findings, each of one part of a run, and the audit that they make up."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rl_reasoner.errors import UserError

FindingStatus = Literal["held", "differs", "unchecked"]


@dataclass(frozen=True)
class AuditFinding:
    """One check: of which part of the run, how it ended, and what there is to say."""

    part: str
    """recipe, data, rewards, code, weights, checkpoints, completions, ledger, metrics, results,
    report, lock, files or replay"""
    status: FindingStatus
    said: str


def held(part: str, said: str) -> AuditFinding:
    """The run says what is there."""
    return AuditFinding(part, "held", said)


def differs(part: str, said: str) -> AuditFinding:
    """The run says something else than what is there."""
    return AuditFinding(part, "differs", said)


def unchecked(part: str, said: str) -> AuditFinding:
    """What the check needs is not here."""
    return AuditFinding(part, "unchecked", said)


@dataclass
class Audit:
    """All findings on the run in `run`, in the order of the checks."""

    run: Path
    findings: list[AuditFinding] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything that could be checked held."""
        return all(finding.status != "differs" for finding in self.findings)

    def of(self, status: FindingStatus) -> list[AuditFinding]:
        """The findings of one kind."""
        return [finding for finding in self.findings if finding.status == status]

    def summary(self) -> str:
        """The outcome in a sentence."""
        counts = f"{len(self.of('held'))} checks held"
        if open_ones := self.of("unchecked"):
            counts += f", {len(open_ones)} could not be made"
        if found := self.of("differs"):
            parts = ", ".join(dict.fromkeys(finding.part for finding in found))
            return f"{self.run} is not what it says it is: {parts} ({counts})"
        return f"{self.run} is what it says it is, as far as was checked ({counts})"

    def to_json(self) -> dict[str, Any]:
        """The audit as JSON values."""
        findings = [asdict(finding) for finding in self.findings]
        return {"run": str(self.run), "holds": self.holds, "findings": findings}


@contextmanager
def as_finding(part: str, found: list[AuditFinding]) -> Iterator[None]:
    """Inside, an error becomes a finding.

    A `UserError`: that check could not be made. What reading values of the wrong kind raises: a
    file of the run, which may be anybody's, is not of the form that runs have.
    """
    try:
        yield
    except UserError as error:
        found.append(unchecked(part, "; ".join(error.messages)))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        said = f"a file is not of the form that runs have: {error!r:.200}"
        found.append(differs(part, said))


def counted(count: int, what: str) -> str:
    """`1,204 completions`, `1 file`: a count with its noun, in the singular where it is one."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def listed(names: list[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
