"""`python tests/conformance TRL`: trl's tests of its GRPO trainer, on trl's and on ours.

TRL is a checkout of trl, or any folder with its `tests`. `tests/test_grpo_trainer.py` is run twice,
each time in a process of its own: as it is, against the installed trl, and with our classes in
place of trl's. Listed are the tests that pass on the first and do not on the second: there must be
none. Ends with 1 where there is one, with 2 where nothing could be compared.

The tests load tiny models and data sets from the hub. Where it cannot be reached, hub.py makes
stand-ins; tests whose models it does not make are counted as not run. More words are passed on to
pytest, `-k NAME` for instance.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from huggingface_hub import HfApi

HERE = Path(__file__).resolve().parent
_UNREACHED = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "couldn't find them in the cached")


def hub_answers() -> bool:
    """Whether the hub has the models that the tests name."""
    try:
        HfApi().model_info("trl-internal-testing/tiny-Qwen2ForCausalLM-2.5", timeout=10)
    except Exception:  # no network, no such host, off by HF_HUB_OFFLINE: all mean the same here
        return False
    return True


def outcomes(tests: Path, words: list[str], edge: Path | None, ours: bool) -> dict[str, str]:
    """Run trl's tests; "passed", "failed", "skipped: WHY" or "not run: WHY" for each."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.xml"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            "CONFORMANCE_OURS": str(int(ours)),
            "TOKENIZERS_PARALLELISM": "false",
        }
        if edge is not None:
            environment |= {
                "CONFORMANCE_EDGE": str(edge),
                "HF_HUB_CACHE": str(edge / "hub"),
                "HF_HUB_OFFLINE": "1",
            }
        command = [sys.executable, "-m", "pytest", str(tests), "-p", "trl_with_ours", "-q"]
        command += ["-p", "no:cacheprovider", f"--junitxml={found}", "--timeout=600", *words]
        subprocess.run(command, cwd=folder, env=environment)
        if not found.is_file():
            return {}
        cases = ElementTree.parse(found).iter("testcase")
        return {f"{c.get('classname')}::{c.get('name')}": outcome(c) for c in cases}


def outcome(case: ElementTree.Element) -> str:
    """What became of one test, by pytest's report of it."""
    for child in case:
        text = f"{child.get('message')} {child.text}"
        if child.tag == "skipped":
            return f"skipped: {child.get('message')}"
        if child.tag in ("failure", "error"):
            if any(name in text for name in _UNREACHED):
                return "not run: its model or data set is not there"
            return "failed"
    return "passed"


def report(stock: dict[str, str], ours: dict[str, str]) -> int:
    """Print the comparison; the exit code."""
    for name, found in (("trl's", stock), ("ours", ours)):
        print(f"{name}: " + ", ".join(f"{n} {kind}" for kind, n in kinds(found).most_common()))
    for why, count in Counter(v for v in stock.values() if ": " in v).most_common():
        print(f"  {count} {why}")
    for name, what in stock.items():
        if what == "failed":
            print(f"  fails on trl's ({ours.get(name)} on ours): {name}")
    worse = [name for name, what in stock.items() if what == "passed" and ours.get(name) != what]
    for name in worse:
        print(f"PASSES ON TRL'S, NOT ON OURS ({ours.get(name)}): {name}")
    passed = sum(what == "passed" for what in stock.values())
    print(f"{passed - len(worse)} of {passed} tests that pass on trl's pass on ours")
    return 1 if worse else 0 if passed else 2


def kinds(found: dict[str, str]) -> Counter[str]:
    """How many tests ended in each way."""
    return Counter(what.partition(":")[0] for what in found.values())


def main() -> int:
    """Compare; see the module's docstring."""
    if len(sys.argv) < 2 or not (Path(sys.argv[1]) / "tests" / "test_grpo_trainer.py").is_file():
        print("usage: python tests/conformance TRL, a folder with trl's tests/test_grpo_trainer.py")
        return 2
    tests = Path(sys.argv[1]).resolve() / "tests" / "test_grpo_trainer.py"
    with tempfile.TemporaryDirectory() as folder:
        edge = None if hub_answers() else Path(folder)
        if edge is not None:
            print("the hub is not reached: its models and data sets are made here", flush=True)
            from hub import build

            build(edge)
        found = [outcomes(tests, sys.argv[2:], edge, ours) for ours in (False, True)]
    return report(*found)


if __name__ == "__main__":
    sys.exit(main())
