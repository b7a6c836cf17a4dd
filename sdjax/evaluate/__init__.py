"""Measures of success and diversity of judged answers."""
