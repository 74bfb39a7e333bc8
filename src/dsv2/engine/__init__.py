"""Many requests at once: admission, blocks, scheduling, sampling, running."""
