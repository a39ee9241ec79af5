"""What ``make demo`` shows: a real root file system becomes an image and a store of objects."""
