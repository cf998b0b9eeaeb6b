"""Send one message with the SDK of an SMS provider to a server on loopback, and print the request.

Runs in a virtual environment of its own, which has the SDKs and nothing of mailer:
`python sdk_requests.py KIND`, with the message as JSON on the standard input. `make peers` does it.
"""

import http.server
import json
import sys
import threading
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

RESPONSE = {
    "sid": "SM1",
    "id": "x",
    "message_uuid": ["a"],
    "data": {"id": "1"},
    "messages": [
        {
            "to": "1",
            "status": "0",
            "message-id": "a",
            "remaining-balance": "1",
            "message-price": "1",
            "network": "1",
        }
    ],
    "message-count": "1",
    "success": True,
}
"""What the server answers: enough for each SDK to end without an error before it sends again."""


class Recorder(http.server.BaseHTTPRequestHandler):
    """Keeps requests, and answers each with `RESPONSE`."""

    requests: list[dict[str, Any]] = []  # noqa: RUF012  # shared on purpose

    def do_POST(self) -> None:  # the name that http.server calls
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.requests.append(
            {"method": "POST", "path": self.path, "headers": headers, "body": body.decode()}
        )
        content = json.dumps(RESPONSE).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def redirect_requests(address: str) -> None:
    """Let the library `requests` send everything to `address`, with the path unchanged."""
    import requests  # only some SDKs use it

    send = requests.Session.send

    def send_to_address(session: Any, request: Any, **options: Any) -> Any:
        parts = urlsplit(request.url)
        request.url = f"{address}{parts.path}" + (f"?{parts.query}" if parts.query else "")
        return send(session, request, **options)

    requests.Session.send = send_to_address  # type: ignore[method-assign,assignment]  # the class is changed on purpose


def twilio(address: str, message: dict[str, Any]) -> None:
    from twilio.rest import Client

    redirect_requests(address)
    Client(message["account"], message["token"]).messages.create(
        to=f"+{message['phone']}",
        from_=message["sender"],
        body=message["text"],
        validity_period=message["validity"],
        status_callback=message["callback"],
    )


def vonage(address: str, message: dict[str, Any]) -> None:
    from vonage_http_client import Auth, HttpClient
    from vonage_sms import Sms, SmsMessage

    redirect_requests(address)
    client = HttpClient(Auth(api_key=message["account"], api_secret=message["token"]))
    Sms(client).send(
        SmsMessage(
            to=message["phone"],
            from_=message["sender"],
            text=message["text"],
            type="text" if message["text"].isascii() else "unicode",
            ttl=message["validity"] * 1_000,
            client_ref=str(message["id"]),
            callback=message["callback"],
        )
    )


def infobip(address: str, message: dict[str, Any]) -> None:
    import infobip_api_client as infobip_client
    from infobip_api_client import models
    from infobip_api_client.api.sms_api import SmsApi

    configuration = infobip_client.Configuration(host=address, api_key=message["token"])
    options = models.SmsMessageOptions(
        validity_period=models.ValidityPeriod(amount=message["validity"] // 60, time_unit="MINUTES")
    )
    webhooks = models.SmsWebhooks(
        delivery=models.SmsMessageDeliveryReporting(url=message["callback"]),
        callback_data=str(message["id"]),
    )
    destination = models.SmsDestination(to=message["phone"], message_id=str(message["id"]))
    content = models.SmsMessageContent(models.SmsTextContent(text=message["text"]))
    sms = models.SmsMessage(
        sender=message["sender"],
        destinations=[destination],
        content=content,
        options=options,
        webhooks=webhooks,
    )
    with infobip_client.ApiClient(configuration) as client:
        SmsApi(client).send_sms_messages(models.SmsRequest(messages=[sms]))


def sinch(address: str, message: dict[str, Any]) -> None:
    from sinch import SinchClient

    redirect_requests(address)
    client = SinchClient(
        service_plan_id=message["account"], sms_api_token=message["token"], sms_region="us"
    )
    client.sms.batches.send_sms(
        to=[f"+{message['phone']}"],
        from_=message["sender"],
        body=message["text"],
        expire_at=datetime.fromisoformat(message["valid_until"]),
        client_reference=str(message["id"]),
        callback_url=message["callback"],
        delivery_report="per_recipient",
    )


def telnyx(address: str, message: dict[str, Any]) -> None:
    from telnyx import Telnyx

    Telnyx(api_key=message["token"], base_url=f"{address}/v2").messages.send(
        to=f"+{message['phone']}",
        from_=message["sender"],
        text=message["text"],
        type="SMS",
        messaging_profile_id=message["account"],
        webhook_url=message["callback"],
    )


def plivo(address: str, message: dict[str, Any]) -> None:
    from plivo import RestClient

    redirect_requests(address)
    RestClient(message["account"], message["token"]).messages.create(
        src=message["sender"],
        dst=message["phone"],
        text=message["text"],
        url=message["callback"],
        method="POST",
        message_expiry=message["validity"],
    )


def messagebird(address: str, message: dict[str, Any]) -> None:
    from messagebird import Client
    from messagebird.http_client import HttpClient

    options = {
        "validity": message["validity"],
        "datacoding": "plain" if message["text"].isascii() else "unicode",
        "reference": str(message["id"]),
        "reportUrl": message["callback"],
    }
    client = Client(message["token"], http_client=HttpClient(address, message["token"], "mailer"))
    client.message_create(message["sender"], [message["phone"]], message["text"], options)


def smsaero(address: str, message: dict[str, Any]) -> None:
    import email_validator
    from smsaero import SmsAero

    email_validator.CHECK_DELIVERABILITY = False  # there is no network
    redirect_requests(address)
    SmsAero(message["username"], message["token"], signature=message["sender"]).send_sms(
        int(message["phone"]), message["text"], callback_url=message["callback"]
    )


def main() -> None:
    """Send the message, and print the first request as JSON."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    message = json.load(sys.stdin)
    try:
        globals()[sys.argv[1]](f"http://127.0.0.1:{server.server_port}", message)
    except Exception as error:  # an SDK may not like the answer
        if not Recorder.requests:
            raise
        print(f"after the request: {error}", file=sys.stderr)
    print(json.dumps(Recorder.requests[0]))


if __name__ == "__main__":
    main()
