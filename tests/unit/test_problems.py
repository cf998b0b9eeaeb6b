"""Which answer an error becomes."""

from litestar.testing import RequestFactory

from mailer.mailing.model import StillStoppingError
from mailer.web.problems import on_mailer_error


def test_what_cannot_be_done_now_says_when_to_ask_again() -> None:
    answer = on_mailer_error(RequestFactory().get(), StillStoppingError())
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
