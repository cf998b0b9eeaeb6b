"""SQL conditions on clients by lists, and the clients of lists as a table.

All of them but `clients_of_large_lists` cost as much as the lists are large, and never as much as
the directory.
"""

from collections.abc import Sequence

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    String,
    and_,
    any_,
    func,
    literal,
    literal_column,
    select,
    true,
)

from mailer.client.lists.sampling import is_sampled
from mailer.db.tables.client import client, client_list, client_list_member

BARRIER = literal_column("0", Integer)
"""As an OFFSET, it keeps the planner from joining a subquery in its own way: a statement must read
the lists first and then each client by its id, whatever the statistics say."""


def _lists_named(name_keys: Sequence[str]) -> Select[tuple[int]]:
    """Select the ids of lists by their folded names."""
    is_named = client_list.c.name_key == any_(literal(list(name_keys), ARRAY(String)))
    return select(client_list.c.id).where(is_named)


def is_on_any(client_id: ColumnElement[int], name_keys: Sequence[str]) -> ColumnElement[bool]:
    """Return the condition that a client is on one of the lists with these folded names.

    It is evaluated by the indexes of the members, once for each client.
    """
    lists = func.array(_lists_named(name_keys).scalar_subquery())
    found = (
        select(true())
        .where(
            client_list_member.c.client_id == client_id,
            client_list_member.c.list_id == any_(lists),
        )
        .limit(1)
        .scalar_subquery()
    )
    return found.is_(True)


def clients_on_any(name_keys: Sequence[str], share: float = 1.0) -> FromClause:
    """Return the clients on any of the lists with these folded names, each once, as a table.

    `share` above 0 and below 1 is for a random sample of about this share of the clients. For a
    sample, all ids on the lists are read from an index, but only the clients of the sample.
    """
    lists = _lists_named(name_keys).subquery("list")
    conditions = [client_list_member.c.list_id == lists.c.id]
    if share < 1:
        conditions.append(is_sampled(client_list_member.c.client_id, share))
    member = (
        select(client_list_member.c.client_id)
        .where(*conditions)
        .order_by(client_list_member.c.client_id)
        .offset(BARRIER)
        .lateral("member")
    )
    ids = select(member.c.client_id).select_from(lists.join(member, true()))
    if len(name_keys) > 1:
        ids = ids.distinct()
    return with_clients(ids.subquery("listed"), client.c.deleted_at.is_(None))


def clients_of_large_lists(list_ids: Sequence[int]) -> FromClause:
    """Return the clients on any of these lists, each once, as a table.

    PostgreSQL may choose to read the whole directory instead of each client by its id. That is
    several times as fast for a list with a large part of all clients.
    """
    member = client_list_member.c
    ids = select(member.client_id).where(
        member.list_id == any_(literal(list(list_ids), ARRAY(BigInteger)))
    )
    if len(list_ids) > 1:
        ids = ids.distinct()
    listed = ids.subquery("listed")
    is_listed = and_(client.c.id == listed.c.client_id, client.c.deleted_at.is_(None))
    return select(client).select_from(listed.join(client, is_listed)).subquery("listed_client")


def next_memberships(list_ids: Sequence[int], after: int, until: int, limit: int) -> FromClause:
    """Return the first `limit` memberships of these lists with after < client_id <= until.

    The column is `client_id`, in its order; a client on several of the lists is there several
    times. At most `limit` memberships of each list are read.
    """
    member = _members_between(list_ids, after, until, limit)
    return select(member.c.client_id).order_by(member.c.client_id).limit(limit).subquery("listed")


def members_between(list_ids: Sequence[int], after: int, until: int) -> FromClause:
    """Return the ids of the clients on any of these lists with after < id <= until, each once.

    The column is `client_id`. No other memberships are read.
    """
    member = _members_between(list_ids, after, until)
    return select(member.c.client_id).distinct().subquery("listed")


def _members_between(
    list_ids: Sequence[int], after: int, until: int, limit: int | None = None
) -> FromClause:
    """Return the memberships of lists with after < client_id <= until, up to `limit` of each.

    A list is read in the order of its primary key.
    """
    ids = func.unnest(literal(list(list_ids), ARRAY(BigInteger)))
    of_list = ids.table_valued("id", name="list").render_derived()
    member = (
        select(client_list_member.c.client_id)
        .where(
            client_list_member.c.list_id == of_list.c.id,
            client_list_member.c.client_id > after,
            client_list_member.c.client_id <= until,
        )
        .order_by(client_list_member.c.client_id)
        .limit(limit)
        .offset(BARRIER)
        .lateral("member")
    )
    return select(member.c.client_id).select_from(of_list.join(member, true())).subquery("member")


def with_clients(
    ids: FromClause, *conditions: ColumnElement[bool], keeps_others: bool = False
) -> FromClause:
    """Return the clients with the ids in the column `client_id` who meet conditions, as a table.

    Its columns are those of `client`. With `keeps_others`, an id whose client does not meet the
    conditions has a row with nulls.
    """
    rows = (
        select(client).where(client.c.id == ids.c.client_id, *conditions).offset(BARRIER).lateral()
    )
    joined = ids.join(rows, true(), isouter=keeps_others)
    columns = [ids.c.client_id, *rows.c]
    return select(*columns).select_from(joined).subquery("listed_client")


def with_list_ids(clients: FromClause, list_ids: Sequence[int]) -> FromClause:
    """Return clients with a column `list_ids`: those of these lists that each client is on.

    It is null for none. So one look-up for each client is enough, however many lists there are.
    """
    found = (
        select(func.array_agg(client_list_member.c.list_id))
        .where(
            client_list_member.c.client_id == clients.c.id,
            client_list_member.c.list_id == any_(literal(list(list_ids), ARRAY(BigInteger))),
        )
        .scalar_subquery()
        .label("list_ids")
    )
    return select(*clients.c, found).offset(BARRIER).subquery("with_list_ids")
