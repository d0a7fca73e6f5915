"""Mixtures of experts as modules and tensors: counts, routing, upcycling a dense policy.

May import `kernels`, `distributed` and the ground; knows no trainer.
"""
