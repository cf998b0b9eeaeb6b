"""How long tests wait for what should have come long before."""

PATIENCE = 90.0
"""Seconds: a bound for what never comes, many times what a slow and busy machine needs."""
