"""Conformance: vectors for the savevm stream, and the runner that holds readers against them."""
