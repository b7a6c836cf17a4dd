"""From questions and text to token ids, and back."""
