"""Processes in namespaces of their own, for which an image is mounted: commands, and holders of mounts for others."""
