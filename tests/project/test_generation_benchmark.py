"""benchmarks/generation.py at a tiny size: each side draws as many tokens as it was told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.places import ROOT


@pytest.mark.slow
def test_rates_and_differences_of_ours_and_of_generate(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "generation.py"), "--cases", "moe"]
    command += ["--dtypes", "float32", "--sides", "ours", "static", "--rows", "1", "9"]
    command += ["--prompt", "16", "--mean", "4", "--repeats", "1", "--differences"]
    command += ["--json", str(out)]
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # where it makes the policy that it measures
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    [result] = json.loads(out.read_text(encoding="utf-8"))
    [repeat] = result["repeats"]
    assert all(rate["whole"] > 0 for side in repeat.values() for rate in side["rates"].values())
    tokens = [[rate["tokens"] for rate in repeat[s]["rates"].values()] for s in ("ours", "static")]
    assert tokens[0] == tokens[1]
    assert result["differences"]["ours"]["max"] < 1e-4
    assert "ours: " in done.stdout
