"""Object stores: content by fs-verity digest."""
