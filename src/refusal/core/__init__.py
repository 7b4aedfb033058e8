"""What all rooms stand on: errors, records, files, progress, statistics, text. No model."""
