"""Gradients: `GRPOTrainer` and its parts, distillation, checkpointing.

`grpo_trainer` reads in the order of a step. May import `rollout` and what is below it; never
`evaluation`, which stands beside it, nor anything of recipes' stages and run folders above it.
"""
