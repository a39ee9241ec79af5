"""Pull readers: buffering, hashing, read-ahead, decompression, spooling; and their limits."""
