"""The chat site's conversations and the answers that grow in them."""
