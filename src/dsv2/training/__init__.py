"""Training: data, losses, optimiser, loop and stages."""
