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

from mailer.db.sql import metadata, one_of, timestamp, timestamp_now
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
    # users identify a key by its name; a revoked key frees its name
    Index("api_key_name_key", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
)

# Users. A user signs in either with a password, of which only a hash is stored, or at an OpenID
# provider: then `issuer` is the provider, and `subject` the user's id there.
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
    # names of users with a password are unique, whatever the case of their letters
    Index(
        "app_user_name_key",
        func.lower(text("name")),
        unique=True,
        postgresql_where=text("issuer IS NULL"),
    ),
)

# Sessions of users' browsers. Only the digest of the cookie is stored. A row is deleted when the
# user signs out or the session expires.
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

# Pending sign-ins at the OpenID provider. mailer sends the browser there with a random `state`. The
# browser comes back with the same state, whose digest is the key of the row. The row is deleted
# then, so that no state can be used twice. `nonce` and `verifier` prove that the provider's answer
# belongs to this sign-in (OpenID Connect Core, RFC 7636); `return_path` is the page to show next.
oidc_sign_in = Table(
    "oidc_sign_in",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("nonce", String, nullable=False),
    Column("verifier", String, nullable=False),
    Column("return_path", String, nullable=False),
    timestamp_now("created_at"),
)

# Numbers of consecutive wrong passwords. A sign-in counts in three rows: for its user name, for its
# network, and for both together. The key is a digest, because a name that is typed in may be any
# text, even a password.
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

# The audit log: who (actor) did what (action) to which object (target), and the object's fields
# before and after. A trigger refuses changes of its rows.
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
    # One index for each filter of the log's page. Its newest rows are read in index order, so that
    # the time does not depend on the length of the log.
    Index(None, "target_kind", "target_id", "id"),
    Index(None, "target_kind", "id"),
    Index(None, "actor_kind", "actor_id", "id"),
    Index(None, "actor_kind", "id"),
    Index(None, "action", "id"),
)

# Requests with an Idempotency-Key. A request may arrive several times; each arrival is an attempt.
# The row says which attempt works on the request and until when, what the request has done, and
# its first response.
idempotency = Table(
    "idempotency",
    metadata,
    # the key or the user that sends the request, and the header's value
    Column("owner", String, nullable=False),
    Column("key", String, nullable=False),
    Column("attempt", Uuid, nullable=False),
    timestamp("leased_until"),
    # digest of the method, the address, the credential and the body, to detect another request with
    # the same key; null until the body was read
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
