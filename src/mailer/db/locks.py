"""Keys of PostgreSQL's advisory locks that workers share."""

MIGRATION = -1
IMPORT = -2
"""Held by the one import that is storing its lines."""
COUNTER_MERGE = -3
SEGMENT_MERGE = -4
STOP = 1 << 62
"""First key of the locks for stop numbers: the key is STOP + number. Each worker holds the lock of
the newest stop that it has applied; see `mailer.mailing.stop_number`."""
