"""Tables of gateways: which of them may take a message, and which are paused.

A *route* is a set of gateways. Each message has one, so that a worker can claim the messages that a
usable gateway may take, and never reads those that wait for another gateway.
"""

from sqlalchemy import ARRAY, Column, ForeignKey, Identity, Integer, String, Table

from mailer.db.sql import metadata, timestamp_now

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

# The gateways that users have paused.
gateway_pause = Table(
    "gateway_pause",
    metadata,
    Column("gateway", String, primary_key=True),
    timestamp_now("paused_at"),
    Column("paused_by", String, nullable=False),
)
