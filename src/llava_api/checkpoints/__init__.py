"""What a checkpoint is, read from its own files."""
