"""From files on disk to batches: records, pixels, reports, corpora. Imports no model."""
