"""Mounts for everyone: what crosses the methods, as real users of the machine."""
