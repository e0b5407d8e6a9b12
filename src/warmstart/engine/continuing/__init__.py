"""A child run: what it inherits of its parent, of ours or of another program, and what it must beat."""
