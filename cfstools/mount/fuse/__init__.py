"""A file system over /dev/fuse: our own loop over the kernel's protocol, for mounts without root and lazy objects."""
