"""Whether two trees are the same answer: exact and interval arithmetic, values, regions, shapes.

May import `answers.tree`; knows nothing of texts.
"""
