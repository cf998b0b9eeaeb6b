"""The columns that every statement sets which ends a message that is not tried any more."""


def ended(reason: str) -> dict[str, str]:
    """Return by column the SQL that an UPDATE of `message` sets to cancel it for a reason, in SQL.

    A message whose delivery is unknown may have been accepted: it ends as unknown instead, with the
    reason of that attempt. It was sent when its last attempt began; its outcome counts now.
    """
    return {
        "status": "CASE WHEN message.unknown_reason IS NULL THEN 'cancelled' ELSE 'unknown' END",
        "reason": f"coalesce(message.unknown_reason, {reason})",
        "sent_at": "CASE WHEN message.unknown_reason IS NOT NULL"
        " THEN coalesce(message.claimed_at, message.updated_at) END",
        "updated_at": "now()",
    }


def set_ended(reason: str) -> str:
    """Return `ended` as the SET clause of a statement."""
    return ", ".join(f"{column} = {value}" for column, value in ended(reason).items())
