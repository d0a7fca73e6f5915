"""training.checkpointing."""
