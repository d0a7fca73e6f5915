"""Mixtures of experts as modules and tensors: counts, routing, upcycling a dense policy.

May import `kernels`, `distributed` and the ground; knows no trainer.
"""

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Under which names configs of mixtures say how many experts a layer has."""
