"""Tables of API keys, users, sessions, sign-ins, the audit log and idempotent requests."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from mailer.db.schema import metadata, timestamp, timestamp_now
from mailer.db.sql import one_of
from mailer.roles import ROLES, SCOPES

# API keys: credentials of programs. Only the digest of a key is stored. A key has 256 random bits,
# so it cannot be found by brute force.
api_key = Table(
    "api_key",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", String, nullable=False),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("scope", String, nullable=False),
    timestamp_now("created_at"),
    timestamp("expires_at", nullable=True),
    timestamp("last_used_at", nullable=True),
    timestamp("revoked_at", nullable=True),
    CheckConstraint(one_of("scope", SCOPES), name="scope"),
    CheckConstraint("char_length(name) BETWEEN 1 AND 64", name="name"),
    # keys are identified by their names
    Index("api_key_name_key", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
)

# Users. `password` is a hash; a user of an OpenID provider has `issuer` and `subject` instead.
app_user = Table(
    "app_user",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", String, nullable=False),
    Column("role", String, nullable=False),
    Column("password_hash", String),
    Column("issuer", String),
    Column("subject", String),
    timestamp_now("created_at"),
    timestamp("signed_in_at", nullable=True),
    timestamp("disabled_at", nullable=True),
    CheckConstraint(one_of("role", ROLES), name="role"),
    CheckConstraint("char_length(name) BETWEEN 1 AND 255", name="name"),
    CheckConstraint("num_nonnulls(issuer, subject) IN (0, 2)", name="subject"),
    CheckConstraint("(password_hash IS NULL) = (issuer IS NOT NULL)", name="password_hash"),
    UniqueConstraint("issuer", "subject", name="app_user_issuer_subject_key"),
    Index(
        "app_user_name_key",
        func.lower(text("name")),
        unique=True,
        postgresql_where=text("issuer IS NULL"),
    ),
)

# Sessions of users' browsers. Only the digest of the cookie is stored. A row is deleted at sign-out
# and at expiry.
session = Table(
    "session",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("user_id", BigInteger, ForeignKey("app_user.id", ondelete="CASCADE"), nullable=False),
    Column("address", String),
    Column("user_agent", String),
    timestamp_now("created_at"),
    timestamp_now("seen_at"),
    Index(None, "user_id"),
)

# Pending sign-ins at the OpenID provider. The browser comes back with the `state`, whose digest is
# the key; the row is deleted then, so that no state can be used twice.
oidc_sign_in = Table(
    "oidc_sign_in",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("nonce", String, nullable=False),
    Column("verifier", String, nullable=False),
    Column("return_path", String, nullable=False),
    timestamp_now("created_at"),
)

# Counters of consecutive wrong passwords, per user name and per network. The key is a digest
# because a name that is typed in may be any text.
login_throttle = Table(
    "login_throttle",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("failures", Integer, nullable=False),
    timestamp("blocked_until"),
    timestamp_now("updated_at"),
)

# Networks from which a user has signed in with the right password: a digest of name and network.
known_network = Table(
    "known_network",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    timestamp_now("seen_at"),
)

# The audit log: actor, action, target, and the target's fields before and after. A trigger refuses
# changes of its rows.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    timestamp_now("at"),
    Column("actor_kind", String, nullable=False),
    Column("actor_id", BigInteger),
    Column("actor", String, nullable=False),
    Column("address", String),
    Column("action", String, nullable=False),
    Column("target_kind", String, nullable=False),
    Column("target_id", BigInteger),
    Column("before", JSONB(none_as_null=True)),
    Column("after", JSONB(none_as_null=True)),
    # the newest rows of any filter are read in index order, however long the log is
    Index(None, "target_kind", "target_id", "id"),
    Index(None, "target_kind", "id"),
    Index(None, "actor_kind", "actor_id", "id"),
    Index(None, "actor_kind", "id"),
    Index(None, "action", "id"),
)

# Requests with an Idempotency-Key: which attempt works on the request and until when, what the
# request has done, and its first response.
idempotency = Table(
    "idempotency",
    metadata,
    Column("owner", String, nullable=False),
    Column("key", String, nullable=False),
    Column("attempt", Uuid, nullable=False),
    timestamp("leased_until"),
    # digest of the method, the address, the credential and the body; null until the body was read
    Column("digest", LargeBinary),
    # what the request has done, written in the transaction that did it
    Column("result", JSONB(none_as_null=True)),
    # the client that the request created: erasing the client also erases the stored response
    Column("client_id", BigInteger),
    Column("status", Integer),
    Column("media_type", String),
    Column("body", LargeBinary),
    timestamp_now("created_at"),
    PrimaryKeyConstraint("owner", "key"),
    Index(None, "created_at"),
    Index(None, "client_id", postgresql_where=text("client_id IS NOT NULL")),
    Index("idempotency_refusal_idx", "owner", postgresql_where=text("status >= 400")),
)
