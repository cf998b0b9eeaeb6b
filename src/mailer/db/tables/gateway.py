"""Tables of gateways: which of them may take a message, and which are paused.

A *route* is a set of gateways. Each message has one, so that a worker can claim the messages that a
usable gateway may take, and never reads those that wait for another gateway.
"""

from sqlalchemy import ARRAY, BigInteger, Column, ForeignKey, Identity, Integer, String, Table

from mailer.db.sql import QUEUE_TABLE_OPTIONS, metadata, timestamp, timestamp_now

# The function `find_route(names)` of the migration returns the id of a route, and adds it if it is
# new. Rows are never changed or deleted.
route = Table(
    "route",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    # names in alphabetical order, possibly none
    Column("gateways", ARRAY(String), nullable=False, unique=True),
)

# The route of new messages, by the client's operator code: the gateways that the newest
# configuration names for it. The row with the empty operator code is for all other codes.
operator_route = Table(
    "operator_route",
    metadata,
    Column("operator_code", String, primary_key=True),
    Column("route", Integer, ForeignKey("route.id"), nullable=False),
)

# When each worker has last applied the routes of its configuration to `operator_route`. A worker
# has the name of its database session. Rows of workers that have ended are deleted now and then.
routes_applied = Table(
    "routes_applied",
    metadata,
    Column("worker", String, primary_key=True),
    timestamp("applied_at"),
)

# Queue of mailings whose messages' routes are to be determined again, in the order of the messages'
# ids; the cursor is the last id that is done. A foreign key would lock the mailings at each insert.
# So there is none, and workers remove the rows of mailings that are closed or deleted.
rerouting = Table(
    "rerouting",
    metadata,
    Column("mailing_id", BigInteger, primary_key=True, autoincrement=False),
    Column("cursor", BigInteger, nullable=False),
    postgresql_with=QUEUE_TABLE_OPTIONS,
)

# The gateways that users have paused.
gateway_pause = Table(
    "gateway_pause",
    metadata,
    Column("gateway", String, primary_key=True),
    timestamp_now("paused_at"),
    Column("paused_by", String, nullable=False),
)
