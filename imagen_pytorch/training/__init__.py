"""Parts of the trainer, one concern each."""
