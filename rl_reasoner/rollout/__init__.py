"""Prompts to completions with log-probabilities: engine, sampler, servers, kept samples.

May import `policy`, `dataset`, `moe`, `kernels` and what is below them.
"""
