"""A recipe taken through its stages: checks before the run, stages, lineage, the run folder.

May import every room but `cli`. `train` is the door.
"""
