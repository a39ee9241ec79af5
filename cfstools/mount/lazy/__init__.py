"""Objects that come when somebody reads them: a store that fetches what is missing, checks it, and keeps it.

``filler`` is the store; ``fetching`` asks sources in order and tries again; ``jobs`` has the threads, misses first;
``receiving`` compares what comes with its digest; ``shelf`` publishes it in batches, ``cache`` has what cannot be
published; ``waiting`` is how readers wait, and stop waiting; ``ranges`` fetches parts of large objects; ``trace`` is
the order in which objects were wanted, to be fetched so the next time (docs/mount.md, "Lazily").
"""
