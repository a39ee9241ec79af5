"""Pull readers: buffering, hashing, read-ahead, decompression, spooling; and the limits they hold to."""
