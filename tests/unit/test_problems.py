"""Which answer an error becomes."""

from litestar.testing import RequestFactory

from mailer.access.oidc.model import SignInError
from mailer.mailing.model import StillStoppingError
from mailer.web.problems import on_mailer_error


def test_what_cannot_be_done_now_says_when_to_ask_again() -> None:
    answer = on_mailer_error(RequestFactory().get(), StillStoppingError())
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"


def test_who_is_not_let_in_is_no_failure_of_ours() -> None:
    assert on_mailer_error(RequestFactory().get(), SignInError()).status_code == 403
