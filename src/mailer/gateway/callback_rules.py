"""Read the calls of a gateway as its profile says."""

from typing import Protocol

from mailer.gateway.callback import Callback, CallbackContent


class CallbackRules(Protocol):
    """How to read the calls of a gateway, and how to answer them."""

    def read(self, callback: Callback) -> CallbackContent: ...

    def response(self, content: CallbackContent) -> tuple[bytes, str]: ...
