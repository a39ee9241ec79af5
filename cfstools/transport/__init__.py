"""Bytes from and to elsewhere, by name: a directory, memory, and later HTTP and object storage.

:mod:`base` has the protocols and what works over every place. What a place delivers has to be checked by whoever asked
for it: by digest, so that nobody elsewhere has to be trusted.
"""
