"""Images as mkcfs pushes them: an OCI image whose last layer is empty and carries the composefs image.

``layout`` says the bytes. ``map`` and ``metadata`` read and write what the last layer carries, ``layer`` writes a tree
as a data layer, ``chunked`` what podman wants to find in it, ``delta`` makes the tree of what changed since another
image, and ``documents`` the config and the manifest. Nothing here opens a file or a connection.
"""
