"""Keys of the advisory locks that processes share."""

MIGRATION = -1
IMPORT = -2
"""By which imports take turns."""
TALLY = -3
DIRECTORY = -4
STOP = 1 << 62
"""From here on: the numbers of stops, of which each worker holds the newest that it has applied."""
