"""Out to the big engines: a recipe's grpo stage in another engine's own form.

`folder.hand_over` writes data, configuration and a reward file; the reward file scores with
`rewards.RecipeRewards`, in rl-reasoner's processes. `subject` is what is handed over, `fields` the
table of what is called what; `verl`, `openrlhf` and `verifiers` are the engines. Loads neither
torch nor any of these engines. May import `dataset`, `recipe`, `scoring` and what lies below.
"""
