"""Rows and the prompts made from them: files, named sets, templates, contamination. No models.

May import `recipe`, `scoring`, `language` and what is below them; torch-free.
"""
