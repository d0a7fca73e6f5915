"""Recipes: runnable scripts; see README.md here."""
