"""A recipe with a real model, from nothing to a file of results, without a hub.

    python benchmarks/real/run.py mbpp_qwen_coder --seed 0 --data DATA [--optim.lr 5e-6 ...]
    make real RECIPE=mbpp_qwen_coder SEED=0 FLAGS="--optim.lr 5e-6"

Fetches the model (fetch.py), makes the rows (splits.py; DATA is described there, and also has
humaneval.jsonl), and trains in runs/real/RECIPE-SEED with the recipe's own settings and the flags.
Each of these goes on where it was stopped: give the same command again. Other folders than DATA
are meant from the project's root. At the end of a run results/RECIPE-SEED.json has, of each set
before and after, accuracies with right answers and problems, lenient accuracies and cut-off shares,
the paired tests, control arms, forecasts, seconds, the highest memory of a process and the machine.
Of each problem it has how many samples are right, so that seeds and arms can be paired later on.
Exit codes are those of `rl-reasoner train`.
"""

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rl_reasoner.evaluation.metrics import share_right
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.files import append_rows, read_jsonl, write_json
from rl_reasoner.foreign import json_object

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("benchmarks") / "real"
_FIGURES = ("problems", "samples", "accuracy", "interval", "lenient", "truncated", "no_answer")


@dataclass(frozen=True)
class Job:
    """What a recipe trains on: a model of fetch.py, rows of splits.py, further sets to evaluate.

    `form`: it has a supervised stage of that name, with rows of its own.
    """

    model: str
    rows: str
    sets: tuple[str, ...] = ()
    form: bool = False
    experts: int = 0


JOBS = {
    "mbpp_qwen_coder": Job("qwen-coder", "mbpp", ("humaneval",)),
    "gsm8k_qwen_coder": Job("qwen-coder", "gsm8k"),
    "tool_qwen_coder": Job("qwen-coder", "gsm8k"),
    "instructions_smollm2": Job("smollm2", "instructions"),
    "word_problems_smollm2": Job("smollm2", "word_problems", form=True),
    "word_problems_moe": Job("smollm2", "word_problems", form=True, experts=4),
}


class Stopped(Exception):
    """A command ended with this code; it has said why."""


def call(*command: str, env: dict[str, str] | None = None) -> str:
    """Run a command in the project's root; its standard output. Raises `Stopped` when it fails."""
    given = {**os.environ, **(env or {})}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=given
    ) as running:
        try:
            said, _ = running.communicate()
        except KeyboardInterrupt:
            running.communicate()  # Ctrl-C is the command's too: it saves its state, and ends
            raise
        except SystemExit:
            running.terminate()  # SIGTERM came to this process alone
            running.communicate()
            raise
    if running.returncode < 0:  # 9 without a word of its own: the system was out of memory
        print(f"{command[0]} was ended by signal {-running.returncode}", file=sys.stderr)
    if running.returncode:
        raise Stopped(running.returncode)
    return said


def terminated(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of SIGTERM: end with its code, which ends the command that runs as well."""
    raise SystemExit(128 + number)


def reasoner(*arguments: str, env: dict[str, str] | None = None) -> str:
    """Run a verb of the command line."""
    return call(sys.executable, "-m", "rl_reasoner.cli", *arguments, env=env)


def model_of(job: Job, cache: Path, given: str | None) -> str:
    """The policy that a job begins with: given or fetched, upcycled where the job has experts."""
    source = (
        given
        or call(sys.executable, str(HERE / "fetch.py"), job.model, str(cache / "models")).strip()
    )
    if not job.experts:
        return source
    mixture = ROOT / cache / f"{Path(source).stem}-{job.experts}-experts"
    if not mixture.is_dir():
        reasoner("export", source, str(mixture), "--upcycle", str(job.experts), "--chosen", "2")
    return str(cache / mixture.name)


def train(name: str, folder: Path, asked: argparse.Namespace, flags: Sequence[str]) -> None:
    """Train in `folder`, or go on there; how long it took and what it held is added to a file."""
    job, rows = JOBS[name], asked.cache / "splits"
    pieces = ROOT / folder.parent / f"{folder.name}.pieces.jsonl"
    if any(piece.get("finished") for piece in read_jsonl(pieces)) and not flags:
        return
    if (ROOT / folder / "recipe.yaml").is_file():
        command = ["train", "--resume", str(folder), *flags]
    else:
        parts = ("train", "test", "form") if job.form else ("train", "test")
        files = {part: rows / f"{job.rows}_{part}.jsonl" for part in parts}
        command = ["train", name, "--policy", model_of(job, asked.cache, asked.model)]
        if not all((ROOT / file).is_file() for file in [rows / "splits.json", *files.values()]):
            call(sys.executable, str(HERE / "splits.py"), str(rows), "--data", str(asked.data))
        command += ["--data", str(files["train"])]
        command += ["--evals.sets", json.dumps([str(files["test"]), *job.sets])]
        command += ["--form.data.path", str(files["form"])] if job.form else []
        command += ["--run.seed", str(asked.seed), "--run.folder", str(folder), *flags]
    began, finished = time.time(), False
    pieces.parent.mkdir(parents=True, exist_ok=True)
    append_rows(pieces, [{"began": began}])
    try:
        reasoner(*command, env={"RL_REASONER_DATA": str(asked.data)})
        finished = True
    finally:
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        unit = 1e9 if sys.platform == "darwin" else 1e6  # ru_maxrss is in bytes there, else in kB
        ended = {"began": began, "seconds": time.time() - began, "peak_gb": largest / unit}
        append_rows(pieces, [{**ended, "finished": finished}])


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """The sets of an evaluation with what a table needs, by the names of their files."""
    made = {}
    for name, found in result["sets"].items():
        kept = {key: found[key] for key in _FIGURES if key in found}
        answers = round(found["problems"] * found["samples"] * found["judged"])
        made[short(name)] = {"right": round(found["accuracy"] * answers), "of": answers, **kept}
    return made


def right_per_problem(result: Path, marks: str = "scores") -> dict[str, str]:
    """Of each set of a saved evaluation, how many samples of each problem are right, in order.

    By the strict marks, or `marks="lenient"`: those sets that have lenient ones.
    """
    return {
        short(name): " ".join(str(round(share_right(row, marks) * len(row[marks]))) for row in rows)
        for name, rows in EvalResult.load(result).rows.items()
        if all(marks in row for row in rows)
    }


def short(name: str) -> str:
    """A set's name without the folder and ending of its file; what follows an @ stays."""
    place, at, mode = Path(name).name.partition("@")
    return Path(place).stem + at + mode


def results(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """What a finished run came to."""
    files = {file.stem: file for file in sorted((ROOT / folder / "evals").glob("*.json"))}
    lock = json_object(ROOT / folder / "lock.json")
    controls = ROOT / folder / "controls.json"
    paired = {}
    for stem in files.keys() - {"before"}:
        told = json.loads(reasoner("compare", str(files["before"]), str(files[stem]), "--json"))
        paired[stem] = {
            short(one): {key: value for key, value in entry.items() if key != "flips"}
            for one, entry in told.items()
        }
    arms = sorted((ROOT / folder / "controls").glob("*/evals/after.json"))
    judged = {**files, **{file.parents[1].name: file for file in arms}}
    pieces = [*read_jsonl(ROOT / folder.parent / f"{folder.name}.pieces.jsonl")]
    ended = [piece for piece in pieces if "seconds" in piece]
    stages = sorted(path for path in (ROOT / folder / "stages").iterdir() if path.is_dir())
    return {
        "recipe": name,
        "seed": seed,
        "command": lock["command"],
        "commit": lock["commit"],
        "versions": lock["versions"],
        "policy": lock["policy"],
        "evals": {stem: figures(json_object(file)) for stem, file in files.items()},
        "paired_with_before": paired,
        "right_per_problem": {stem: right_per_problem(file) for stem, file in judged.items()},
        "lenient_per_problem": {
            stem: right_per_problem(file, "lenient") for stem, file in judged.items()
        },
        "controls": json_object(controls) if controls.is_file() else None,
        "forecasts": {
            stage.name: json_object(stage / "forecast.json")
            for stage in stages
            if (stage / "forecast.json").is_file()
        },
        "seconds": sum(piece["seconds"] for piece in ended),  # without those of killed pieces
        "stage_seconds": {
            stage.name: json_object(stage / "done.json").get("seconds") for stage in stages
        },
        "pieces": len({piece["began"] for piece in pieces}),  # over 1: stopped, and went on
        "killed_pieces": len({piece["began"] for piece in pieces}) - len(ended),
        "peak_memory_gb": max(piece["peak_gb"] for piece in ended),
        "machine": {
            "system": lock["machine"],
            "processor": processor(),
            "threads": lock["threads"],
        },
    }


def processor() -> str:
    """The processor's own name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def main() -> int:
    """Fetch, split, train, and write down what it came to."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        epilog="further flags are fields of the recipe, as of rl-reasoner train",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", choices=JOBS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--model", help="a policy that is here already (default: it is fetched)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/real"))
    parser.add_argument("--runs", type=Path, default=Path("runs/real"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    asked, flags = parser.parse_known_args()
    if any(flag.partition("=")[0] == "--until" for flag in flags):
        parser.error("--until: a run is taken to its end here; rl-reasoner train stops before")
    asked.data = asked.data.resolve()
    folder = asked.runs / f"{asked.recipe}-{asked.seed}"
    signal.signal(signal.SIGTERM, terminated)
    try:
        train(asked.recipe, folder, asked, flags)
        out = ROOT / asked.results / f"{folder.name}.json"
        write_json(out, results(asked.recipe, folder, asked.seed))
    except Stopped as error:
        return int(error.args[0])
    except KeyboardInterrupt:
        return 130
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
