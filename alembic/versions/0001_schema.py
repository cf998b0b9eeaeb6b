"""The whole schema, from `0001_schema.sql`."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

VIEWS = ("all_segment_counts", "all_message_counts", "all_outcome_counts")
TABLES = (
    *("client", "client_to_replan", "segment_count", "segment_count_delta"),
    *("mailing_counts", "mailing", "message"),
    *("message_count", "message_count_delta", "outcome_count", "settled_totals", "origin"),
    *("daily_report", "api_key", "session", "app_user", "oidc_sign_in", "login_throttle"),
    *("known_network", "audit", "idempotency"),
)
FUNCTIONS = (
    *("note_time_zone_changes", "add_segment_deltas_of_insert", "add_segment_deltas_of_update"),
    *("add_segment_deltas_of_delete", "mailing_words", "words_of", "note_mailing_change"),
    *("count_inserted_messages", "count_updated_messages", "add_message_deltas_of_insert"),
    *("add_message_deltas_of_update", "update_settled_totals", "update_origin_before_insert"),
    *("update_origin", "sending_is_allowed", "origin_is_current", "system_identifier"),
    *("wal_timeline", "refuse_change"),
)


def upgrade() -> None:
    """Run each statement of the file: the driver takes one at a time."""
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in sql.split(";\n\n"):
        op.get_bind().exec_driver_sql(statement.rstrip().removesuffix(";"))


def downgrade() -> None:
    """Drop everything, with all data."""
    for kind, names in (("VIEW", VIEWS), ("TABLE", TABLES), ("FUNCTION", FUNCTIONS)):
        for name in names:
            op.execute(f"DROP {kind} {name}")
    op.execute("DROP SEQUENCE stop_number")
