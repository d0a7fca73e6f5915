"""The verb `eval`: a policy, or saved completions, on sets of problems.

Nothing heavy is imported before it is needed.
"""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import (
    Count,
    Decimal,
    File,
    Flag,
    Folder,
    Json,
    Name,
    Names,
    Options,
    Quiet,
    RunsItsCode,
    Text,
    ToolNames,
    Whole,
    check_numbers,
    check_writable,
    data_of,
    environment_of,
    note_template,
    parse_options,
    prompt_settings,
    reward_options_of,
    tool_settings,
    use_data_dir,
)
from rl_reasoner.cli.progress import ProgressBars
from rl_reasoner.distributed.loading import load_for_good
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.report.console import emit, err

if TYPE_CHECKING:
    from rl_reasoner.evaluation.result import EvalResult
    from rl_reasoner.recipe.data import FileData


@dataclass
class EvalVerb:
    """Evaluate a policy on sets of problems, with 95% intervals."""

    policy: Positional[Annotated[str | None, arg(metavar="POLICY", help_behavior_hint="")]] = None
    """a run or policy folder, a .gguf file, a hub id; with --server the model's name there"""
    sets: Names = None
    """sets by name, file or hub id, separated by commas; see: rl-reasoner list sets"""
    samples: Whole = 1
    """completions per problem: 1 is greedy, more are sampled"""
    seed: Whole = 0
    """what is drawn follows from it"""
    temperature: Decimal = None
    """sampling temperature (default 1.0)"""
    max_tokens: Whole = 256
    """longest completion, in tokens"""
    template: Text = None
    """prompt template (default: the run's own, else auto)"""
    system: Text = None
    """system prompt of chats (default: the run's own)"""
    limit: Count = None
    """only the first N problems of each set"""
    reward: Name = None
    """the reward that judges (default: code_tests where rows have tests, else math_answer)"""
    reward_options: Options = ""
    """its options: extract=whole,timeout_s=2 or a JSON object"""
    data_dir: Folder = None
    """a folder that holds sets as NAME.jsonl"""
    columns: Options = ""
    """for files and hub ids: problem=question,answer=final"""
    config: Name = None
    """for hub ids: configuration"""
    split: Name = None
    """for hub ids and saved folders: split (default: test)"""
    weights: Literal["own", "auto", "bfloat16", "int8"] = "own"
    """sample with the policy's own weights, or with copies in bf16 or int8"""
    tools: ToolNames = "own"
    """what may be called: calculator, python, FILE.py:NAME, none (default: the run's own)"""
    tool_format: Name = None
    """how calls are written: auto, hermes, llama3, fences or tags (default: the run's own)"""
    server: Annotated[str | None, arg(metavar="URL", help_behavior_hint="")] = None
    """URL of an OpenAI-compatible server of the model"""
    trained_on: Names = None
    """files or sets that the policy was trained on; overlaps with them are counted"""
    decontaminated: Flag = False
    """count overlaps with the data of the run in POLICY, and also report on the clean rows"""
    no_cache: Flag = False
    """sample everything again, and cache nothing"""
    replay: File = None
    """judge the completions of this saved result again; needs no policy"""
    out: File = None
    """save the result here (JSON), and its page (HTML) next to it"""
    run_its_code: RunsItsCode = False
    quiet: Quiet = False
    json: Json = False

    def run(self) -> None:
        """Evaluate and print the table."""
        counts = {"samples": self.samples, "max_tokens": self.max_tokens, "limit": self.limit}
        check_numbers(self.temperature, self.seed, **counts)
        target = check_writable(self.out) if self.out is not None else None
        if target is not None and target.suffix in (".html", ".jsonl"):
            raise UserError(f"--out {target}: the result is JSON; its page and rows go next to it")
        use_data_dir(self.data_dir)
        try:
            result = self._replayed(self.replay) if self.replay is not None else self._evaluated()
        except KeyboardInterrupt:
            if self.replay is None and not self.no_cache:
                err.print("what was sampled is kept: the same command goes on there")
            raise
        if target is not None:
            from rl_reasoner.evaluation.result import sibling_file
            from rl_reasoner.report import write_evaluation

            result.save(target)
            write_evaluation([target], sibling_file(target, ".html"))
        emit(self.json, result.to_json(), result.table())
        threads = result.manifest.get("policy", {}).get("threads")
        if threads and self.replay is None and "OMP_NUM_THREADS" not in os.environ:
            err.print(f"threads: {threads}; set OMP_NUM_THREADS to change it", style="dim")
        _check_rewards_worked(result)

    def _replayed(self, file: Path) -> "EvalResult":
        from rl_reasoner.evaluation.evaluate import replay
        from rl_reasoner.evaluation.result import EvalResult

        usable = (
            "replay",
            "reward",
            "reward_options",
            "data_dir",
            "out",
            "quiet",
            "json",
            "run_its_code",
        )
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if unusable := [name for name in given if name not in usable]:
            flags = [
                "POLICY" if name == "policy" else f"--{name.replace('_', '-')}" for name in unusable
            ]
            raise UserError(f"--replay judges a saved result: it does not take {', '.join(flags)}")
        options = reward_options_of(self.reward_options, self.reward)
        code = self.run_its_code
        return replay(EvalResult.load(file), self.reward, options or None, run_its_code=code)

    def _check_kept(self, name: str) -> None:
        """Raise `UserError` where the result, its rows or its page would overwrite a set."""
        from rl_reasoner.dataset.sets import find_set
        from rl_reasoner.evaluation.result import sibling_file

        source = find_set(name)
        if self.out is None or source is None:
            return
        for file in (self.out, *(sibling_file(self.out, end) for end in (".rows.jsonl", ".html"))):
            if file.resolve() == source.resolve():
                raise UserError(
                    f"--out {self.out}: {file} is a set that is evaluated; give another name"
                )

    def _evaluated(self) -> "EvalResult":
        from rl_reasoner.dataset.sets import check_set
        from rl_reasoner.policy.names import check_policy

        if self.policy is None or self.sets is None:
            raise UserError("evaluate what? Give POLICY and --sets, or --replay FILE")
        if self.server is None:
            check_policy(self.policy)
        names = [name.strip() for name in self.sets.split(",")]
        for name in names:
            check_set(name)
            self._check_kept(name)
        from rl_reasoner.evaluation.evaluate import check_judge, check_sets, evaluate

        options = reward_options_of(self.reward_options, self.reward)
        check_judge(self.reward, options or None)
        self._check_columns(self.policy, options)
        from rl_reasoner.paths import cache_folder

        sets = [self._set(name) for name in names]
        note_template(self.template)
        template, system = prompt_settings(self.policy, self.template, self.system)
        tools = tool_settings(self.policy, self.tools, self.tool_format)
        if environment_of(self.policy) is None:  # it may open rows with columns of its own
            check_sets(sets, self.reward, options or None, self.limit)
        trained_on = self._training_rows(self.policy)
        policy: Any = self.policy
        if self.server is not None:
            from rl_reasoner.rollout.server import ServedPolicy

            policy = ServedPolicy(self.server, self.policy)
        else:
            err.print("loading torch and transformers", style="dim")
            load_for_good("rl_reasoner.policy.opening", "rl_reasoner.rollout.sampler")
            from rl_reasoner.policy.opening import quiet_libraries

            quiet_libraries()
        with ProgressBars(self.quiet) as progress:
            return evaluate(
                policy,
                sets,
                self.samples,
                self.seed,
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                template=template,
                system=system,
                limit=self.limit,
                reward=self.reward,
                reward_options=options or None,
                progress=progress,
                cache=None if self.no_cache else cache_folder() / "samples",
                trained_on=trained_on,
                weights=self.weights,
                tools=tools,
                environment=environment_of(self.policy),
            )

    def _check_columns(self, policy: str, options: dict[str, Any]) -> None:
        """Raise `UserError` for a column of --columns that nothing reads: it would mean another."""
        from rl_reasoner.dataset.rows import ROW_COLUMNS
        from rl_reasoner.scoring.registry import load_reward
        from rl_reasoner.scoring.reward import Reward

        given = parse_options("--columns", self.columns)
        if not given or environment_of(policy) is not None:
            return
        names = [self.reward] if self.reward else ["math_answer", "code_tests", "instructions"]
        rewards = [load_reward(name, options if self.reward else {}) for name in names]
        if not all(isinstance(reward, Reward) for reward in rewards):
            return  # a plain function does not say what it reads
        read = [(*one.columns, *one.missing) for one in rewards if isinstance(one, Reward)]
        known = {*ROW_COLUMNS, *(name for columns in read for name in columns)}
        for name in given:
            if name not in known:
                raise unknown("column (--columns)", name, known, owner="what is evaluated")

    def _set(self, name: str) -> "str | FileData":
        columns = parse_options("--columns", self.columns)
        options = {"columns": columns, "config": self.config, "split": self.split}
        given = {key: value for key, value in options.items() if value}
        return data_of(name, given) if given else name

    def _training_rows(self, policy: str) -> list[dict[str, Any]] | None:
        """The rows that the policy was trained on, if overlaps are to be counted."""
        from rl_reasoner.dataset.rows import load_problems, load_rows
        from rl_reasoner.recipe.data import FileData

        if self.trained_on is not None:
            columns = parse_options("--columns", self.columns)
            names = [name.strip() for name in self.trained_on.split(",")]
            files = [FileData(path=name, columns=columns) for name in names]
            return [row for data in files for row in load_problems(data)]
        if not self.decontaminated:
            return None
        recipe = Path(policy) / "recipe.yaml"
        if not recipe.is_file():
            raise UserError(
                f"--decontaminated: {policy} is not a run folder; name with --trained-on FILE,FILE "
                "what the policy was trained on"
            )
        from rl_reasoner.pipeline.lineage import data_in
        from rl_reasoner.recipe.load import load_recipe

        run = load_recipe(str(recipe))
        return [
            row
            for stage in run.stages
            if stage.reuse is None
            for row in load_rows(data_in(Path(policy), run, stage))
        ]


def _check_rewards_worked(result: "EvalResult") -> None:
    """Raise `RewardsFailed` where the reward failed on all completions of a set."""
    for name, figures in result.sets.items():
        if figures.get("faults") == 1.0:
            from rl_reasoner.scoring.circuit_breaker import RewardsFailed

            row = next(iter(result.rows.get(name, [])), {})
            first = next(iter(row.get("reasons", [])), "")
            raise RewardsFailed(f"{name}: the reward failed on every completion: {first}")
