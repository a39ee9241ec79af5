"""Hot loops: a pure Python truth and, where it was built, a C copy of it."""
