"""Files in and out: published checkpoints, hubs, training state."""
