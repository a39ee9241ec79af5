"""The care of a store: check, repair, garbage collection, usage."""
