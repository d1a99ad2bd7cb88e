"""A blinded study of generated reports and drawings by human readers."""
