"""System calls that Python does not wrap, and safe ways to open files. Only this room imports ctypes and fcntl."""
