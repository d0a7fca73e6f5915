"""Completions of several turns that environments answer (rl_reasoner.environments), as tokens.

`turn_form` writes an environment's messages as token ids, `environment_turns` answers the engine's
rows with them, `opening` makes rows ask what their environments begin with, `kept` has the
episodes of a run's rollouts again. May import the rest of `rollout` but what samples.
"""
