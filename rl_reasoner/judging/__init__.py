"""Judges: a model gives the items of a rubric points, or ranks the completions of a prompt.

May import `rollout` and what is below it. `judge` follows a completion through the room: `rubric`
is what is asked, `prompts` makes it a chat in which the completion is quoted as data, `backends`
are who answers (a server, a local policy, a function), `wire` bounds and counts what goes over the
network, `verdicts` reads the replies and holds votes against each other. The rewards `judge` and
`judge_ranking` are thin over it; `evaluation/calibration.py` says how far a judge agrees with
labels.
"""
