"""Ours against the reference tools, on the same input, in turns; ``make bench``."""
