"""What is asked of a checkpoint before or without a run."""
