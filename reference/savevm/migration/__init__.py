"""Live migration: who runs when, how fast, and what is told about it."""
