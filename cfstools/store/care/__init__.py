"""The care of stores: the one check of objects, which whoever needs objects calls."""
