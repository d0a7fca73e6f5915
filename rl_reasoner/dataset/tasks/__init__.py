"""Problems made on the spot, with answers known to be right: maths, programs, instructions.

`base` says what a task is, `generate` lists the tasks. May import what `dataset` may.
"""
