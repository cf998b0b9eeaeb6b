"""The timeout for events that a test waits for, and that usually come within a second."""

EVENT_TIMEOUT = 90.0
"""Seconds; long enough for a slow and busy machine, so reached only if the event never comes."""
