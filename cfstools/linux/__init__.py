"""The only callers of ioctl and of system calls that Python does not wrap."""
