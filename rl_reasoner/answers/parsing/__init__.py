"""From the text of an answer to a tree: glyphs, words and units, tokens, the grammar, statements.

May import `answers.tree`; knows nothing of what is equal to what.
"""
