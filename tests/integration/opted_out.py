"""Steps of the tests of opt-outs."""

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.factories import do, execute, value

from mailer.opt_out import service
from mailer.opt_out.model import OptOut

OPTED_OUT = ("cancelled", "opted_out", 0)
"""The state of a message that is not sent because its client has opted out."""


async def phone_of(engine: AsyncEngine, client_id: int) -> str:
    """Return the phone of a client."""
    return str(await value(engine, f"SELECT phone FROM client WHERE id = {client_id}"))  # noqa: S608  # a number


async def opt_out(engine: AsyncEngine, phone: str) -> OptOut | None:
    """Opt a phone out, as a reply does."""
    return await do(engine, lambda db: service.opt_out_phone(db, phone, "reply", "main"))


async def opt_out_client(engine: AsyncEngine, client_id: int) -> None:
    """Opt the phone of a client out."""
    assert await opt_out(engine, await phone_of(engine, client_id)) is not None


async def opt_in(engine: AsyncEngine, phone: str) -> OptOut | None:
    """Opt a phone in again, as a reply does."""
    return await do(engine, lambda db: service.opt_in_phone(db, phone, "reply"))


async def is_opted_out(engine: AsyncEngine, phone: str) -> bool:
    """Return whether the client with this phone has opted out."""
    query = f"SELECT opted_out_at IS NOT NULL FROM client WHERE phone = '{phone}'"  # noqa: S608  # digits
    return bool(await value(engine, query))


async def make_service(engine: AsyncEngine, mailing_id: int) -> None:
    """Make a mailing ignore opt-outs."""
    await execute(engine, f"UPDATE mailing SET purpose = 'service' WHERE id = {mailing_id}")  # noqa: S608  # a number
