"""Tables of who may come in, and of who did what."""

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

from mailer.db.schema import metadata, moment, now, one_of
from mailer.settings import ROLES, SCOPES

# A program's way in. What it shows is kept as its digest alone: it has 256 random bits, so that
# nobody finds it by trying.
api_key = Table(
    "api_key",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", String, nullable=False),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("scope", String, nullable=False),
    now("created_at"),
    moment("expires_at", nullable=True),
    moment("last_used_at", nullable=True),
    moment("revoked_at", nullable=True),
    CheckConstraint(one_of("scope", SCOPES), name="scope"),
    CheckConstraint("char_length(name) BETWEEN 1 AND 64", name="name"),
    # two keys of one name could not be told apart
    Index("api_key_name_key", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
)

# A person: with a password here, or known to an OpenID provider by issuer and subject.
account = Table(
    "account",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", String, nullable=False),
    Column("role", String, nullable=False),
    Column("password", String),
    Column("issuer", String),
    Column("subject", String),
    now("created_at"),
    moment("signed_in_at", nullable=True),
    moment("disabled_at", nullable=True),
    CheckConstraint(one_of("role", ROLES), name="role"),
    CheckConstraint("char_length(name) BETWEEN 1 AND 255", name="name"),
    CheckConstraint("num_nonnulls(issuer, subject) IN (0, 2)", name="subject"),
    CheckConstraint("(password IS NULL) = (issuer IS NOT NULL)", name="password"),
    UniqueConstraint("issuer", "subject", name="account_issuer_subject_key"),
    Index(
        "account_name_key",
        func.lower(text("name")),
        unique=True,
        postgresql_where=text("issuer IS NULL"),
    ),
)

# A browser's way in, of which the cookie's digest is kept, until it is ended or runs out.
session = Table(
    "session",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("account_id", BigInteger, ForeignKey("account.id", ondelete="CASCADE"), nullable=False),
    Column("address", String),
    Column("browser", String),
    now("created_at"),
    now("seen_at"),
    Index(None, "account_id"),
)

# A way to the OpenID provider that somebody has begun and not come back from. Who comes back shows
# its state, and the row is gone: no state is good for twice.
sign_in = Table(
    "sign_in",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("nonce", String, nullable=False),
    Column("verifier", String, nullable=False),
    Column("back", String, nullable=False),
    now("created_at"),
)

# Passwords that were wrong in a row, by whom and from where; a digest, since it may be anything.
throttle = Table(
    "throttle",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("failures", Integer, nullable=False),
    moment("blocked_until"),
    now("updated_at"),
)

# Where somebody has shown the right password: a digest of the name and the network.
home = Table(
    "home",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    now("seen_at"),
)

# Who did what to which thing, and what it was before and after. A trigger refuses every change.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    now("at"),
    Column("actor_kind", String, nullable=False),
    Column("actor_id", BigInteger),
    Column("actor", String, nullable=False),
    Column("address", String),
    Column("action", String, nullable=False),
    Column("target_kind", String, nullable=False),
    Column("target_id", BigInteger),
    Column("before", JSONB(none_as_null=True)),
    Column("after", JSONB(none_as_null=True)),
    # the newest of any filter are found in order, however long the log is
    Index(None, "target_kind", "target_id", "id"),
    Index(None, "target_kind", "id"),
    Index(None, "actor_kind", "actor_id", "id"),
    Index(None, "actor_kind", "id"),
    Index(None, "action", "id"),
)

# What was asked for under an Idempotency-Key: who works on it until when, what came of it, and the
# first answer.
idempotency = Table(
    "idempotency",
    metadata,
    Column("owner", String, nullable=False),
    Column("key", String, nullable=False),
    Column("attempt", Uuid, nullable=False),
    moment("taken_until"),
    # of the method, the address, the credential and the body; null until the body was read
    Column("digest", LargeBinary),
    # what the request has done, written in the transaction that did it
    Column("effect", JSONB(none_as_null=True)),
    # the client that it made: erased with it
    Column("client_id", BigInteger),
    Column("status", Integer),
    Column("media_type", String),
    Column("body", LargeBinary),
    now("created_at"),
    PrimaryKeyConstraint("owner", "key"),
    Index(None, "created_at"),
    Index(None, "client_id", postgresql_where=text("client_id IS NOT NULL")),
    Index("idempotency_refusal_idx", "owner", postgresql_where=text("status >= 400")),
)
