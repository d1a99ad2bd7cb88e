"""A trained model in use: images in, reports and answers out, and images drawn from a text."""
