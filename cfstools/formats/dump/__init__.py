"""The composefs-dump(5) text: one line per name, as the format's tools exchange it (composefs format, section 6).

``parse`` makes a tree of it, with ``fields`` and ``links``; ``print`` is the way back. Commands need one of the two, so
nothing is loaded here.
"""
