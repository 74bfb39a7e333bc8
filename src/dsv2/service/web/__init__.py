"""What stands around every request: HTTP, errors, logs, metrics, the built site's files."""
