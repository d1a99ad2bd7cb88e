"""Recipes: lists of `mavilt` commands with what each reads and writes, and a small make."""
