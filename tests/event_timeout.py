"""The timeout of tests for events that should come much earlier."""

EVENT_TIMEOUT = 90.0
"""Seconds; reached only if the event never comes, even on a slow and busy machine."""
