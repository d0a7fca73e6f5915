"""The recipe: its schema, reading it from scripts, YAML and flags, its JSON schema, algorithms.

Says what a run is to do and does none of it. May import `scoring` and the ground; torch-free.
"""
