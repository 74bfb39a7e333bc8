"""Who asks, how much, and what it costs."""
