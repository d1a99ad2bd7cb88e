"""The visual tokenizer: pixels to codes and back."""
