"""Delivery receipts: what gateways report about messages that they have accepted."""
