"""One device at work: memory, warm-up, generation."""
