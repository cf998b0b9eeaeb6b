"""Keys of the advisory locks that processes share; positive ones are mailings' ids."""

MIGRATION = -1
IMPORT = -2
"""By which imports take turns."""
TALLY = -3
DIRECTORY = -4
