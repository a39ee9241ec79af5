"""Anything that can be built, opened as a tree."""
