"""Out to a distributed engine: a recipe's grpo stage in verl's own form.

`folder.hand_over` writes data, configuration and a reward file; the reward file scores with
`rewards.RecipeRewards`, in rl-reasoner's processes. `subject` is what is handed over, `fields` the
table of what is called what, `verl` that table for verl. Loads neither torch nor verl.

May import `dataset`, `recipe`, `scoring` and what lies below.
"""
