"""What training will do to diversity, told before it."""
