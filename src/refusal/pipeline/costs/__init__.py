"""What a run should take: tokens, seconds, bytes."""
