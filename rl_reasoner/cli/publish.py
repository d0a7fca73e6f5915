"""The verb `publish`: a finished run as a folder that is ready for a hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

from rich.text import Text
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Flag, Json, RunsItsCode, check_writable
from rl_reasoner.distributed.loading import load_for_good
from rl_reasoner.errors import UserError
from rl_reasoner.paths import check_goes_on, check_run
from rl_reasoner.report.console import emit, err, new_table


@dataclass
class PublishVerb:
    """Write a finished run as a folder for a hub: policy, card, report, results and their audit.

    Refused where an audit finds that the run is not what it says it is.
    """

    run_folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    """the run's folder"""
    to: Positional[Annotated[Path, arg(metavar="FOLDER")]]
    """a new folder; its name heads the card"""
    push: Annotated[str | None, arg(metavar="OWNER/NAME", help_behavior_hint="")] = None
    """upload the folder to this repository of the Hugging Face hub, private unless --public"""
    public: Flag = False
    """with --push: make the repository public"""
    dry_run: Flag = False
    """with --push: say what would be uploaded, and upload nothing"""
    no_records: Flag = False
    """leave out the run's own files, without which nobody else can audit it"""
    run_its_code: RunsItsCode = False
    json: Json = False

    def run(self) -> None:
        """Publish, push if asked to, and print where it is."""
        if self.push is None and (self.public or self.dry_run):
            raise UserError("--public and --dry-run belong to --push OWNER/NAME")
        check_run(self.run_folder)
        check_goes_on(self.run_folder)
        if self.to.is_dir():
            self._refuse_folder()
        check_writable(self.to)
        err.print("loading torch and transformers", style="dim")
        load_for_good("rl_reasoner.publishing.folder")
        from rl_reasoner.publishing.folder import (
            check_repository,
            files_to_push,
            publish_run,
            push_folder,
            upload_command,
        )

        if self.push is not None:
            check_repository(self.push)
        audit = publish_run(
            self.run_folder,
            self.to,
            records=not self.no_records,
            run_its_code=self.run_its_code,
            note=lambda text: err.print(text, style="dim"),
        )
        files = files_to_push(self.to)
        value: dict[str, Any] = {"folder": str(self.to), "files": files, "pushed": None}
        table = new_table("file", "bytes")
        for file in files:
            table.add_row(Text(file["file"]), f"{file['bytes']:,}")
        told = [str(self.to), audit.summary()]
        if self.push is not None and not self.dry_run:
            private = not self.public
            try:
                value["pushed"] = push_folder(self.to, self.push, private=private)
            except KeyboardInterrupt:
                by_hand = upload_command(self.to, self.push, private)
                err.print(f"{self.to} is written; push it with: {by_hand}", soft_wrap=True)
                raise
            told.append(value["pushed"])
        elif self.push is not None:
            told.append(f"would be uploaded to {self.push}; nothing was")
        table.caption, table.caption_justify = Text("\n" + "\n".join(told)), "left"
        table.caption_style = ""
        emit(self.json, value, table)

    def _refuse_folder(self) -> NoReturn:
        """Raise `UserError` for a folder that is there, with the way on where an upload ended."""
        there = f"{self.to} exists already; give a new folder"
        published = (self.to / "audit.json").is_file()
        if published and self.push is not None and not self.dry_run:
            from rl_reasoner.publishing.folder import upload_command

            there += f", or upload this one: {upload_command(self.to, self.push, not self.public)}"
        raise UserError(there)
