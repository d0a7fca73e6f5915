"""The view of a run: plain lines in a log, figures redrawn on a terminal, silence when asked."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rl_reasoner.report.terminal import Curve, LiveView, sparkline


class Clock:
    """Time that passes when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def view(*, terminal: bool = False, quiet: bool = False) -> tuple[LiveView, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None)
    return LiveView(quiet=quiet, console=console, clock=clock), out, clock


def train(live: LiveView, clock: Clock, *, steps: int = 20, seconds: float = 1.0) -> None:
    with live:
        live.start_stage("grpo", 2, 3, steps)
        for step in range(1, steps + 1):
            clock.now += seconds
            figures = {"reward": step / steps, "loss": 0.5, "tokens_per_second": 3100.0}
            live.update(figures | {"completions/mean_length": 42.0}, step)
        live.finish_stage()


def test_log_has_start_and_end_and_a_line_every_few_seconds() -> None:
    live, out, clock = view()
    train(live, clock)
    lines = out.getvalue().splitlines()
    assert lines[0] == "[2/3 grpo] 20 steps"
    assert [line.split("  ")[0] for line in lines[1:-1]] == [
        f"[2/3 grpo] step {step}/20" for step in (5, 10, 15, 20)
    ]
    assert lines[1].endswith("reward 0.25  length 42  tokens/s 3,100  left 15.0 s")
    assert lines[-1].startswith("[2/3 grpo] done: step 20 after 20.0 s  reward 1")


def test_time_left_is_measured_from_the_first_update_of_a_resumed_stage() -> None:
    live, out, clock = view()
    with live:
        live.start_stage("grpo", 1, 1, 100)
        clock.now += 60  # loading, and no steps yet
        live.update({}, 91)
        clock.now += 6
        live.update({}, 94)
        live.finish_stage()
    first, second = out.getvalue().splitlines()[1:3]
    assert first.endswith("left –")
    assert second.endswith("left 12.0 s")


def test_time_left_goes_by_the_later_half_of_the_steps_and_by_all_evaluations() -> None:
    live, out, clock = view()
    with live:
        live.start_stage("grpo", 1, 1, 20)
        for step, seconds in enumerate([100, 100, 100, 10, 10, 10, 10], 1):
            clock.now += seconds
            live.update({"step_time": seconds}, step)
            live.update({"step_time": seconds, "eval/modular_test/accuracy": 0.5}, step)
            clock.now += 60 if step == 1 else 0  # an evaluation behind the step
        live.finish_stage()
    assert "left 4 min 20 s" in out.getvalue(), "13 steps of 10 s, and 10 s each to evaluate"


def test_accuracy_stays_until_the_next_evaluation() -> None:
    live, out, clock = view()
    with live:
        live.start_stage("grpo", 1, 1, 9)
        live.update({"eval/modular_test/accuracy": 0.5}, 1)
        clock.now += 60
        live.update({"reward": float("nan")}, 2)
    assert "reward nan  accuracy on modular_test 50.0%" in out.getvalue()


def test_sft_shows_its_loss() -> None:
    live, out, _ = view()
    with live:
        live.start_stage("sft", 1, 2, 1)
        live.update({"loss": 0.25}, 1)
        live.finish_stage()
    assert "done: step 1 after 0.0 s  loss 0.25" in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_an_interrupted_stage_says_where_it_stopped(terminal: bool) -> None:
    live, out, _ = view(terminal=terminal)
    with pytest.raises(KeyboardInterrupt), live:
        live.start_stage("grpo", 1, 1, 9)
        live.update({"reward": 0.5}, 4)
        raise KeyboardInterrupt
    assert "[1/1 grpo] stopped: step 4" in out.getvalue()


def test_terminal_shows_bar_count_time_left_figures_and_curve() -> None:
    live, out, clock = view(terminal=True)
    train(live, clock)
    shown = out.getvalue()
    for part in ("2/3 grpo", "━", "19/20", "1.0 s left", "tokens/s 3,100", "▁▁▂", "\x1b[?25h"):
        assert part in shown
    assert "[2/3 grpo] done: step 20" in shown


def test_faults_of_rewards_are_counted_over_the_stage() -> None:
    live, out, clock = view()
    with live:
        live.start_stage("grpo", 1, 1, 9)
        for step in range(1, 4):
            clock.now += 60
            live.update({"reward": 0.5, "rewards/a/faults": step, "rewards/b/faults": 0.0}, step)
    assert [
        line.rpartition("faults ")[2].split()[0] for line in out.getvalue().splitlines()[1:]
    ] == [
        "1",
        "3",
        "6",
        "6",
    ]
    live, out, clock = view()
    train(live, clock)
    assert "faults" not in out.getvalue()


def test_terminal_has_a_curve_of_each_figure_over_the_whole_stage() -> None:
    live, out, clock = view(terminal=True)
    with live:
        live.start_stage("grpo", 1, 1, 1000)
        for step in range(1000):
            clock.now += 1
            figures = {"reward": step / 1000, "tokens_per_second": 1000.0 - step}
            live.update(figures | {"eval/held_out/accuracy": step / 1000}, step + 1)
    last = out.getvalue().rpartition("reward")[0].rpartition("left")[0]
    curves = {line.split()[0]: line.split()[-1] for line in last.splitlines()[-4:] if line.split()}
    assert 20 <= len(curves["reward"]) <= 40
    assert (curves["reward"][0], curves["reward"][-1]) == ("▁", "█")
    assert (curves["tokens/s"][0], curves["tokens/s"][-1]) == ("█", "▁")
    assert curves["accuracy"] == curves["reward"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=700))
def test_a_curve_is_short_and_within_its_values(values: list[float]) -> None:
    curve = Curve()
    for value in values:
        curve.add(value)
    assert 1 <= len(curve.points) <= 41
    assert min(values) - 1e-6 <= min(curve.points)
    assert max(curve.points) <= max(values) + 1e-6
    if len(values) <= 40:
        assert curve.points == values


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_is_silent(terminal: bool) -> None:
    live, out, clock = view(terminal=terminal, quiet=True)
    live.note("hello")
    train(live, clock)
    assert out.getvalue() == ""


def test_no_color_leaves_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=True, width=120, color_system="standard")
    train(LiveView(console=console, clock=clock), clock)
    assert "\x1b[1m" in out.getvalue()  # bold is no colour
    assert "\x1b[3" not in out.getvalue()
    assert "\x1b[9" not in out.getvalue()


def test_a_note_is_shown_as_it_is_without_control_characters() -> None:
    live, out, _ = view()
    live.note("[red]not markup[/red] \x1b[2J \ud800")
    assert out.getvalue() == "[red]not markup[/red] \ufffd[2J \ufffd\n"


def test_the_usual_view_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveView() as live:
        live.note("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_sparkline() -> None:
    assert sparkline([]) == ""
    assert sparkline([float("nan")]) == ""
    assert sparkline([3, 3]) == "▁▁"
    assert sparkline([0, float("inf"), 0.5, 1]) == "▁ ▅█"


def test_progress_of_other_work_is_one_line_every_few_seconds() -> None:
    now = [0.0]
    console = Console(file=io.StringIO(), width=100)
    with LiveView(console=console, clock=lambda: now[0]) as view:
        for done in range(1, 11):
            now[0] += 2.0
            view.progress("modular_test", done, 10)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == ["modular_test: 3/10", "modular_test: 6/10", "modular_test: 9/10"]
