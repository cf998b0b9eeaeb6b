"""Who may come in, who did what, and what was asked for under an Idempotency-Key."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

REFUSE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what stands in % stays as it is', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$
"""
NEVER_ALTERED = """
CREATE TRIGGER audit_never_altered BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
"""


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("password", sa.String(), nullable=True),
        sa.Column("issuer", sa.String(), nullable=True),
        sa.Column("subject", sa.String(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("signed_in_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "role IN ('viewer', 'operator', 'admin')", name=op.f("account_role_check")
        ),
        sa.CheckConstraint(
            "(password IS NULL) = (issuer IS NOT NULL)", name=op.f("account_password_check")
        ),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 255", name=op.f("account_name_check")),
        sa.CheckConstraint(
            "num_nonnulls(issuer, subject) IN (0, 2)", name=op.f("account_subject_check")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("account_pkey")),
        sa.UniqueConstraint("issuer", "subject", name="account_issuer_subject_key"),
    )
    op.create_index(
        "account_name_key",
        "account",
        [sa.literal_column("lower(name)")],
        unique=True,
        postgresql_where=sa.text("issuer IS NULL"),
    )
    op.create_table(
        "api_key",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("scope IN ('read', 'write', 'admin')", name=op.f("api_key_scope_check")),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 64", name=op.f("api_key_name_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("api_key_pkey")),
        sa.UniqueConstraint("digest", name=op.f("api_key_digest_key")),
    )
    op.create_index(
        "api_key_name_key",
        "api_key",
        ["name"],
        unique=True,
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("actor_kind", sa.String(), nullable=False),
        sa.Column("actor_id", sa.BigInteger(), nullable=True),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("target_kind", sa.String(), nullable=False),
        sa.Column("target_id", sa.BigInteger(), nullable=True),
        sa.Column("before", postgresql.JSONB(), nullable=True),
        sa.Column("after", postgresql.JSONB(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_pkey")),
    )
    op.create_index(op.f("audit_action_id_idx"), "audit", ["action", "id"], unique=False)
    op.create_index(
        op.f("audit_actor_kind_actor_id_id_idx"),
        "audit",
        ["actor_kind", "actor_id", "id"],
        unique=False,
    )
    op.create_index(op.f("audit_actor_kind_id_idx"), "audit", ["actor_kind", "id"], unique=False)
    op.create_index(
        op.f("audit_target_kind_target_id_id_idx"),
        "audit",
        ["target_kind", "target_id", "id"],
        unique=False,
    )
    op.create_index(op.f("audit_target_kind_id_idx"), "audit", ["target_kind", "id"], unique=False)
    op.create_table(
        "idempotency",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("attempt", sa.Uuid(), nullable=False),
        sa.Column("taken_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=True),
        sa.Column("effect", postgresql.JSONB(), nullable=True),
        sa.Column("client_id", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("media_type", sa.String(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("owner", "key", name=op.f("idempotency_pkey")),
    )
    op.create_index(
        op.f("idempotency_client_id_idx"),
        "idempotency",
        ["client_id"],
        unique=False,
        postgresql_where=sa.text("client_id IS NOT NULL"),
    )
    op.create_index(op.f("idempotency_created_at_idx"), "idempotency", ["created_at"], unique=False)
    op.create_table(
        "sign_in",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("nonce", sa.String(), nullable=False),
        sa.Column("verifier", sa.String(), nullable=False),
        sa.Column("back", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("sign_in_pkey")),
    )
    op.create_table(
        "throttle",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("blocked_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("throttle_pkey")),
    )
    op.create_table(
        "home",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column(
            "seen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("home_pkey")),
    )
    op.create_table(
        "session",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("browser", sa.String(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("session_account_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("session_pkey")),
    )
    op.create_index(op.f("session_account_id_idx"), "session", ["account_id"], unique=False)
    op.execute(REFUSE)
    op.execute(NEVER_ALTERED)


def downgrade() -> None:
    for table in (
        "session",
        "throttle",
        "home",
        "sign_in",
        "idempotency",
        "audit",
        "api_key",
        "account",
    ):
        op.drop_table(table)
    op.execute("DROP FUNCTION refuse_change")
