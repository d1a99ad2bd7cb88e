"""What a training will need, by arithmetic alone: nothing is built, and torch is not imported."""
