"""Completions on sets of problems, judged: figures with intervals, comparisons, manifests.

May import `rollout` and what is below it; never `training`, which stands beside it.
"""
