"""The verb `filter`: the rows of a set that a policy gets right sometimes, as a file.

Nothing heavy is imported before it is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Group
from rich.text import Text as Line
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import (
    Count,
    Flag,
    Folder,
    Json,
    Name,
    Number,
    Options,
    Quiet,
    RunsItsCode,
    Text,
    ToolNames,
    Whole,
    check_numbers,
    check_writable,
    data_of,
    note_template,
    parse_options,
    prompt_settings,
    refuse_environment,
    reward_options_of,
    tool_settings,
    use_data_dir,
)
from rl_reasoner.cli.progress import ProgressBars, told_if_long
from rl_reasoner.distributed.loading import load_for_good
from rl_reasoner.errors import RunStopped, UserError
from rl_reasoner.report.console import emit, err, new_table

if TYPE_CHECKING:
    from rl_reasoner.recipe.data import FileData
    from rl_reasoner.recipe.stages import FilterStage

_BAR = 36  # columns


@dataclass
class FilterVerb:
    """Keep the rows that a policy gets right sometimes: GRPO learns nothing from the others.

    Each row is sampled several times and judged. OUT gets the rows whose share of right completions
    is in --keep, OUT.rates.jsonl the rates of all. Interrupted or killed, the same command goes on
    where it was.
    """

    policy: Positional[Annotated[str, arg(metavar="POLICY")]]
    """a run or policy folder, a .gguf file, a hub id"""
    data: Positional[Annotated[str, arg(metavar="SET")]]
    """a set by name, file or hub id; see: rl-reasoner list sets"""
    samples: Whole = 8
    """completions per row"""
    keep: Annotated[str, arg(metavar="LOW..HIGH")] = "0.2..0.8"
    """pass rates of the rows that are kept, both included"""
    out: Annotated[Path | None, arg(metavar="FILE.jsonl", help_behavior_hint="")] = None
    """the rows that are kept (default: SET.filtered.jsonl)"""
    limit: Count = None
    """only the first N rows"""
    seed: Whole = 0
    """what is drawn follows from it"""
    temperature: Number = 1.0
    """sampling temperature"""
    max_tokens: Whole = 512
    """longest completion, in tokens"""
    template: Text = None
    """prompt template (default: the run's own, else auto)"""
    system: Text = None
    """system prompt of chats (default: the run's own)"""
    reward: Name = None
    """the reward that judges (default: code_tests where rows have tests, else math_answer)"""
    reward_options: Options = ""
    """its options: extract=whole,timeout_s=2 or a JSON object"""
    min_score: Number = 1.0
    """completions with this score or more are right"""
    data_dir: Folder = None
    """a folder that holds sets as NAME.jsonl"""
    columns: Options = ""
    """for files and hub ids: problem=question,answer=final"""
    config: Name = None
    """for hub ids: configuration"""
    split: Annotated[str, arg(metavar="NAME")] = "train"
    """for hub ids and saved folders: split"""
    tools: ToolNames = "own"
    """what may be called: calculator, python, FILE.py:NAME, none (default: the run's own)"""
    tool_format: Name = None
    """how calls are written: auto, hermes, llama3, fences or tags (default: the run's own)"""
    weights: Literal["own", "auto", "bfloat16", "int8"] = "own"
    """sample with the policy's own weights, or with copies in bf16 or int8"""
    no_cache: Flag = False
    """sample everything again, and cache nothing"""
    run_its_code: RunsItsCode = False
    quiet: Quiet = False
    json: Json = False

    def run(self) -> None:
        """Filter, and print the histogram."""
        from rl_reasoner.dataset.sets import check_set
        from rl_reasoner.policy.names import check_policy

        stage = self._stage()
        use_data_dir(self.data_dir)
        check_policy(self.policy)
        why = "and a filter has nobody who answers its turns"
        refuse_environment(self.policy, f"{why}: see its pass rates by rl-reasoner eval")
        check_set(self.data)
        kept, rates = self._files()
        try:
            card = self._filter(stage, kept, rates)
        except KeyboardInterrupt:
            if not self.no_cache:
                err.print("what was sampled is kept: the same command goes on there")
            raise
        except RunStopped:  # nothing is kept, or the reward failed
            kept.unlink(missing_ok=True)  # of an earlier filter: it would be taken for this one's
            raise
        value = {**card, "written": str(kept), "rates": str(rates)}
        emit(self.json, value, _shown(card, kept, rates))

    def _stage(self) -> "FilterStage":
        """What to do, as a stage of a recipe; raises `UserError` for bad flags."""
        from rl_reasoner.evaluation.evaluate import check_judge
        from rl_reasoner.recipe.stages import FilterSampling, FilterStage, check_range, rate_range

        counts = {"samples": self.samples, "max_tokens": self.max_tokens, "limit": self.limit}
        check_numbers(self.temperature, self.seed, **counts)
        if self.temperature == 0:
            raise UserError("--temperature 0: all samples of a row would be the same")
        try:
            rate_range(self.keep)
            check_range(self.keep, self.samples)
        except ValueError as error:
            raise UserError(f"--keep: {error}") from None
        options = reward_options_of(self.reward_options, self.reward)
        check_judge(self.reward, options or None)
        return FilterStage(
            name="filter",
            samples=self.samples,
            keep=self.keep,
            sampling=FilterSampling(temperature=self.temperature, max_tokens=self.max_tokens),
            reward=self.reward,
            reward_options=options,
            min_score=self.min_score,
        )

    def _files(self) -> tuple[Path, Path]:
        """The files of the rows that are kept and of all rates; neither is the one that is read."""
        from rl_reasoner.dataset.sets import find_set

        source = find_set(self.data)
        kept = check_writable(self.out or Path(f"{Path(self.data).stem}.filtered.jsonl"))
        if kept.suffix != ".jsonl":
            raise UserError(f"--out {kept}: the rows are JSONL: give a name that ends in .jsonl")
        rates = check_writable(kept.with_suffix(".rates.jsonl"))
        for file in (kept, rates):
            if source is not None and file.resolve() == source.resolve():
                raise UserError(f"--out {kept}: {file} is what is filtered; give another name")
        return kept, rates

    def _data(self) -> "FileData":
        columns = parse_options("--columns", self.columns)
        given = {"columns": columns, "config": self.config, "split": self.split}
        return data_of(self.data, {key: value for key, value in given.items() if value})

    def _filter(self, stage: "FilterStage", kept: Path, rates: Path) -> dict[str, Any]:
        from rl_reasoner.dataset.rows import load_rows

        with told_if_long(f"reading {self.data}"):
            rows = load_rows(self._data())[: self.limit]
        note_template(self.template)
        template, system = prompt_settings(self.policy, self.template, self.system)
        tools = tool_settings(self.policy, self.tools, self.tool_format)
        err.print("loading torch and transformers", style="dim")
        load_for_good("rl_reasoner.pipeline.difficulty_filter")
        from rl_reasoner.distributed.threads import Threads
        from rl_reasoner.paths import cache_folder
        from rl_reasoner.pipeline.difficulty_filter import FilterFiles, filter_rows
        from rl_reasoner.policy.opening import open_policy, quiet_libraries

        quiet_libraries()
        with told_if_long(f"opening {self.policy}"):
            policy = open_policy(self.policy)
        cache = None if self.no_cache else cache_folder() / "samples"
        total = len(rows) * stage.samples
        with Threads() as threads, ProgressBars(self.quiet) as progress:
            threads.suit(policy.model)
            return filter_rows(
                stage,
                rows,
                policy,
                FilterFiles(kept, rates, cache),
                template=template,
                seed=self.seed,
                system=system,
                weights=self.weights,
                tools=tools,
                progress=lambda done: progress(Path(self.data).stem, done, total),
            )


def _shown(card: Mapping[str, Any], kept: Path, rates: Path) -> Group:
    """The histogram of pass rates, with what became of the rows under it."""
    table = new_table("pass rate", "rows", "", "")
    table.columns[1].justify = "right"
    most = max(bar["rows"] for bar in card["histogram"])
    for bar in card["histogram"]:
        style = "green" if bar["kept"] else "dim"
        length = -(-bar["rows"] * _BAR // max(most, 1))
        drawn = Line("█" * length, style=style)
        table.add_row(f"{bar['rate']:.3f}", f"{bar['rows']:,}", drawn, "kept" * bool(bar["kept"]))
    return Group(table, Line("\n".join(["", *_sentences(card, kept, rates)])))


def _sentences(card: Mapping[str, Any], kept: Path, rates: Path) -> list[str]:
    dropped = ", ".join(f"{count:,} {why}" for why, count in card["dropped"].items())
    cut = f"{card['truncated']:.1%} of the completions were cut off at {card['max_tokens']} tokens"
    silent = f"{card['abstained']:,} abstentions, {card['faults']:,} faults"
    return [
        f"kept {card['rows']:,} of {card['of']:,} rows with pass rates {card['keep']} "
        f"of {card['samples_a_row']} samples",
        f"dropped: {dropped}",
        f"{cut}; {silent}",
        *([f"commonest: {card['commonest_failure']}"] if card["commonest_failure"] else []),
        f"rows: {kept}",
        f"rates of all: {rates}",
    ]
