"""Published and small training runs."""
