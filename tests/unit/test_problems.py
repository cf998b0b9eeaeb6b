"""The HTTP responses for errors."""

from litestar.testing import RequestFactory

from mailer.mailing.errors import StopTimeoutError
from mailer.oidc.model import SignInError
from mailer.web.problems import on_mailer_error


def test_temporary_error_is_a_503_with_a_retry_after_header() -> None:
    response = on_mailer_error(RequestFactory().get(), StopTimeoutError())
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"


def test_failed_sign_in_is_a_403() -> None:
    assert on_mailer_error(RequestFactory().get(), SignInError()).status_code == 403
