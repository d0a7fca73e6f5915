"""The processes of one run: loading, started, meeting, ended; weights in shards; threads of a CPU.

A leaf: may import only the ground (`types`, `errors`, `files`, `paths`, `workers`).
"""
