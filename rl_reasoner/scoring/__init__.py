"""Rewards: what one is, finding it by name, running it apart under limits, the ledger of scores.

May import only the ground (`workers` starts its processes); torch-free. The rewards that are
shipped live in `rewards/`, the kit that examines one in `testing`.
"""
