"""Columns to set in every UPDATE that ends a message without another attempt."""


def end_columns(reason: str) -> dict[str, str]:
    """Return the columns and SQL values that cancel a message; `reason` is an SQL expression.

    A message that an attempt may have delivered becomes `unknown` instead of `cancelled`, with the
    reason of that attempt. Its `sent_at` is the start of the last attempt, and `updated_at`, the
    time of the outcome, is now.
    """
    return {
        "status": "CASE WHEN message.unknown_reason IS NULL THEN 'cancelled' ELSE 'unknown' END",
        "reason": f"coalesce(message.unknown_reason, {reason})",
        "sent_at": "CASE WHEN message.unknown_reason IS NOT NULL"
        " THEN coalesce(message.claimed_at, message.updated_at) END",
        "updated_at": "now()",
    }


def end_set_clause(reason: str) -> str:
    """Return `end_columns` as the SET clause of an UPDATE of `message`."""
    return ", ".join(f"{column} = {value}" for column, value in end_columns(reason).items())
