"""EROFS as composefs uses it: the records, a bit-exact writer and a strict reader."""
