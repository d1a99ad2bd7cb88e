"""The language model that knows codes as words: vocabulary, sequences, losses, drift, decoding, and the stages."""
