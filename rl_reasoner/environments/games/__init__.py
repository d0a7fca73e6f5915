"""Small games that come with the package, as examples and for recipes in minutes: one file each.

A leaf of the room; its games are found by `rl_reasoner.environments.load_environment`. The starts
of games are tasks (`rl_reasoner.dataset.tasks.games`).
"""
