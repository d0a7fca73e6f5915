"""Where in a completion its answer stands: tags, boxes, words that announce it, the last line.

May import `answers.parsing`, `answers.tree` and `language.thinking`.
"""
