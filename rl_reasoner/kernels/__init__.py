"""Tensors and modules only: packed rows, attention over shared prefixes, the LM head on a CPU.

A leaf: knows no trainer, no tokenizer and no other room.
"""
