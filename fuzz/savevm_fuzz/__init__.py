"""Mutated streams, and what must hold for them."""
