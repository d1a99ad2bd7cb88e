"""Recipes: lists of `mavilt` commands, what each reads and writes, and a small make that runs them."""
