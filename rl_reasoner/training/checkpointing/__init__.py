"""What a checkpoint needs to be whole and to resume exactly, and what ends a run in the middle.

May import what `training` may, but no trainer: trainers take it in.
"""
