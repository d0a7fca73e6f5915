"""What an engine is to a handover: its name, its table of fields, the files that it reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rl_reasoner.handover.fields import Field
from rl_reasoner.handover.subject import Subject

Written = Mapping[str, str | bytes]
"""Files by their paths in the folder."""


@dataclass(frozen=True)
class Engine:
    """Another engine, as `export --to` writes for it."""

    name: str
    """what follows --to"""
    title: str
    version: str
    """the version whose names the fields have, and whose code the tests call"""
    fields: Sequence[Field]
    files: Callable[[Subject, str], Written]
    """the files for a subject, and a folder (an absolute path) that they come to lie in"""
    start: Sequence[str]
    """commands that start the training; {folder} is the folder, {module} the recipe's slug"""
    outcomes: str
    """what becomes of abstentions and faults there"""
