"""The dashboards that `run.report_to` names, and whether they are installed; loads none of them."""

import importlib.util
import os
import re

from rl_reasoner.errors import UserError, unknown

DASHBOARDS = ("trackio", "tensorboard", "wandb")


def dashboards_of(report_to: str) -> list[str]:
    """The dashboards that `report_to` names; raises `UserError` for one that is not installed."""
    if report_to == "auto":
        report_to = os.environ.get("RL_REASONER_REPORT_TO", "auto")
    if report_to == "auto":
        return ["trackio"] if importlib.util.find_spec("trackio") else []
    names = [name.strip() for name in report_to.split(",") if name.strip()]
    if names == ["none"]:
        return []
    for name in names:
        if name not in DASHBOARDS:
            raise unknown("dashboard", name, [*DASHBOARDS, "auto", "none"])
        if not importlib.util.find_spec(name):
            raise UserError(f"the dashboard {name} is not installed: pip install {name}")
    return names


def project_of(name: str) -> str:
    """A recipe's name as a dashboard's project: letters, digits, "-" and "_"."""
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "rl-reasoner"
