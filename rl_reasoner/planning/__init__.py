"""A run on paper: memory of each GPU by part, time of a step by part, and where it breaks.

`plan` plans a recipe's grpo stages from four things: the policy's shape (`shapes`), the recipe's
numbers (`load`), the GPU's data sheet and what is assumed (`gpus`). `step_time` and `step_memory`
are the arithmetic. The assumptions were fitted to five published runs and held against five others
(tests/planning/test_plan.py names them; all ten within a factor of 1.5). A plan is an estimate of
that quality: it tells an order of steps from another, not one configuration from its neighbour.
For this machine's CPU constants are measured (`processors`), and `cpu_time` is the arithmetic.
Opens no policy but tiny ones for that: parameters are counted in a model that is never allocated.
"""
