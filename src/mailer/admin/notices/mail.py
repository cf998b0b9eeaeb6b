"""The text of a mail with notices, in the language of the user, as plain text and as HTML."""

from collections.abc import Iterator
from urllib.parse import quote

import msgspec
from markupsafe import Markup

from mailer.admin.formats import format_local_time, format_number, message_status_label
from mailer.admin.labels import reason_label
from mailer.admin.language import gettext as _
from mailer.admin.language import ngettext, use_language
from mailer.admin.render import render_template
from mailer.admin.viewer import Viewer
from mailer.mailing.model import Mailing
from mailer.notice.content import GatewayChange, NoticeContent, UnreachedMailing
from mailer.notice.delivery import MailContent, Reader


class Section(msgspec.Struct, frozen=True):
    """A part of a mail: one mailing, or one gateway."""

    title: str
    lines: list[str]
    path: str | None = None
    """The page that shows more."""


def compose(content: NoticeContent, reader: Reader, *, public_url: str | None) -> MailContent:
    """Write a mail; `public_url` is the address of mailer, for links, if it is known.

    A mail has names of mailings and gateways, and numbers, but no phone and no text of a message.
    """
    base = None if public_url is None else public_url.rstrip("/")
    with use_language(reader.language):
        sections = list(_sections(content, reader))
        variables = {
            "viewer": _viewer(reader),
            "sections": sections,
            "base": base,
            "profile_url": None if base is None else f"{base}/profile",
        }
        return MailContent(
            subject=f"mailer: {_subject(sections)}",
            text=render_template("notices/mail.txt", **variables),
            html=render_template("notices/mail.html", **variables),
            profile_url=None if base is None else f"{base}/profile",
        )


def _viewer(reader: Reader) -> Viewer:
    return Viewer(reader.language, reader.time_zone)


def _subject(sections: list[Section]) -> str:
    if len(sections) == 1:
        return sections[0].title
    others = len(sections) - 1
    text = ngettext("%(title)s, and %(n)s other notice", "%(title)s, and %(n)s others", others)
    return text % {"title": sections[0].title, "n": others}


def _sections(content: NoticeContent, reader: Reader) -> Iterator[Section]:
    for change in content.gateways:
        yield _gateway_section(change, reader)
    for mailing in content.held:
        yield _held_section(mailing, reader)
    if content.more_held:
        text = ngettext(
            "%(n)s other mailing is held", "%(n)s other mailings are held", content.more_held
        )
        yield Section(text % {"n": content.more_held}, [], "/mailings?status=running")
    for ended in content.ended:
        yield _ended_section(ended, reader)
    if content.more_ended:
        text = ngettext(
            "%(n)s other mailing has ended without reaching everybody",
            "%(n)s other mailings have ended without reaching everybody",
            content.more_ended,
        )
        yield Section(text % {"n": content.more_ended}, [], "/mailings?status=finished")
    if content.is_test:
        yield Section(_("This is a test mail"), [_("Notices reach this address.")])


def _title_of(mailing: Mailing) -> str:
    """Return the name of a mailing, never the beginning of its text."""
    if mailing.name:
        return _("Mailing “%(name)s”") % {"name": mailing.name}
    return _("Mailing %(id)s") % {"id": mailing.id}


def _ended_section(ended: UnreachedMailing, reader: Reader) -> Section:
    mailing = ended.mailing
    values = {
        "mailing": _title_of(mailing),
        "n": format_number(ended.unreached),
        "all": format_number(mailing.clients_count),
    }
    lines = []
    for count in ended.counts:
        reason = f": {reason_label(count.reason)}" if count.reason else ""
        label = message_status_label(count.status)
        lines.append(f"{format_number(count.messages)} {label}{reason}")
    if mailing.sent_messages:
        text = ngettext(
            "%(n)s accepted message still awaits its receipt.",
            "%(n)s accepted messages still await their receipts.",
            mailing.sent_messages,
        )
        lines.append(text % {"n": format_number(mailing.sent_messages)})
    values["end"] = format_local_time(mailing.datetime_end, reader.time_zone)
    title = ngettext(
        "%(mailing)s has ended: %(n)s of %(all)s clients was not reached",
        "%(mailing)s has ended: %(n)s of %(all)s clients were not reached",
        ended.unreached,
    )
    return Section(title % values, lines, f"/mailings/{mailing.id}")


def _held_section(mailing: Mailing, reader: Reader) -> Section:
    """Return why a mailing is held, in the words of its page."""
    why = render_template("notices/held.html", viewer=_viewer(reader), mailing=mailing)
    lines = [Markup(why).striptags()]  # noqa: S704  # rendered by a template that escapes
    if mailing.held is not None:
        since = format_local_time(mailing.held.since, reader.time_zone)
        lines.append(_("It has been held since %(since)s.") % {"since": since})
    end = format_local_time(mailing.datetime_end, reader.time_zone)
    lines.append(_("The mailing ends at %(end)s.") % {"end": end})
    title = _("%(mailing)s is held") % {"mailing": _title_of(mailing)}
    return Section(title, lines, f"/mailings/{mailing.id}")


def _gateway_section(change: GatewayChange, reader: Reader) -> Section:
    since = format_local_time(change.since, reader.time_zone)
    path = f"/gateways/{quote(change.gateway, safe='')}"
    if change.until is not None:
        until = format_local_time(change.until, reader.time_zone)
        line = _("It was out from %(since)s to %(until)s.") % {"since": since, "until": until}
        title = _("Gateway %(name)s works again") % {"name": change.gateway}
        return Section(title, [line], path)
    reason = reason_label(change.reason or "")
    line = _("It has accepted nothing since %(since)s: %(reason)s.")
    title = _("Gateway %(name)s is out") % {"name": change.gateway}
    return Section(title, [line % {"since": since, "reason": reason}], path)
