"""Bytes from and to elsewhere, by name: web servers, object storage, directories, memory.

:mod:`base` has the protocols of places and :mod:`open` makes one of a URL. :mod:`http` has our rules for HTTP above a
:mod:`wire`, which is urllib3 in :mod:`pool` or a function in :mod:`scripted`; :mod:`cloud` is object storage.
:mod:`ranges` and :mod:`reading` read spans and go on after connections break; :mod:`plan` decides which ranges to ask
for, and :mod:`fetch` asks several sources. What a place delivers has to be checked by whoever asked for it: by digest,
so that nobody elsewhere has to be trusted.
"""
