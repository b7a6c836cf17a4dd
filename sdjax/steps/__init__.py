"""Pure step functions: sampling, scoring, signals, updates."""
