"""A minimal gateway for each kind: answers every request as that provider accepts a message.

All kinds cost it the same, except for the length of the answer. Each answer has an id of its own,
where the provider sends one. At the start it prints the URL of each kind, as one line of JSON.
"""

import asyncio
import json
import signal
from typing import cast

import uvloop

ANSWERS: dict[str, tuple[int, str]] = {
    "json": (200, '{"code":0}'),
    "twilio": (
        201,
        (
            '{"account_sid":"AC00000000000000000000000000000000","api_version":"2010-04-01","body":'
            '"Your order is ready.","date_created":"Thu, 24 Aug 2023 05:01:45 +0000"'
            ',"date_sent":null,"date_updated":"Thu, 24 Aug 2023 05:01:45 +0000","direction":'
            '"outbound-api","error_code":null,"error_message":null,"from":"ACME","num_media":"0",'
            '"num_segments":"1","price":null,"price_unit":null,"messaging_service_sid":null,"sid":'
            '"SM%032d","status":"queued","subresource_uris":{"media":"/2010-04-01/Media.json"},"to":'
            '"+79161234567","uri":"/2010-04-01/Accounts/AC0/Messages/SM.json"}'
        ),
    ),
    "vonage": (
        200,
        (
            '{"message-count":"1","messages":[{"to":"79161234567","message-id":"%016d","status":"0",'
            '"remaining-balance":"3.14159265","message-price":"0.03330000","network":"25001"}]}'
        ),
    ),
    "infobip": (
        200,
        (
            '{"bulkId":"2034072219640523072","messages":[{"messageId":"%016d","status":{"description":'
            '"Message sent to next instance","groupId":1,"groupName":"PENDING","id":26,"name":'
            '"PENDING_ACCEPTED"},"destination":"79161234567","details":{"messageCount":1}}]}'
        ),
    ),
    "sinch": (
        201,
        (
            '{"id":"01FC%022d","to":["79161234567"],"from":"ACME","canceled":false,"body":'
            '"Your order is ready.","type":"mt_text","created_at":'
            '"2023-08-24T14:15:22.100Z","modified_at":"2023-08-24T14:15:22.100Z","delivery_report":'
            '"none","expire_at":"2023-08-27T14:15:22.100Z","flash_message":false}'
        ),
    ),
    "messagebird": (
        201,
        (
            '{"id":"%032d","href":"https://rest.messagebird.com/messages/0","direction":"mt","type":'
            '"sms","originator":"ACME","body":"Your order is ready.","reference":'
            '"12","validity":3600,"gateway":10,"typeDetails":{},"datacoding":"plain","mclass":1,'
            '"scheduledDatetime":null,"createdDatetime":"2023-08-24T10:00:00+00:00","recipients":'
            '{"totalCount":1,"totalSentCount":1,"totalDeliveredCount":0,"totalDeliveryFailedCount":0,'
            '"items":[{"recipient":79161234567,"status":"sent","statusDatetime":'
            '"2023-08-24T10:00:00+00:00","messagePartCount":1}]}}'
        ),
    ),
    "plivo": (
        202,
        (
            '{"api_id":"db342550-7e9d-11e1-8ea7-1231380bc196","message":"message(s) queued",'
            '"message_uuid":["%036d"]}'
        ),
    ),
    "telnyx": (
        200,
        (
            '{"data":{"record_type":"message","direction":"outbound","id":"%036d","type":"SMS",'
            '"messaging_profile_id":"4000eba1-a0c0-4563-9925-b25e842a7cb6","organization_id":'
            '"b448f9cc-a842-4784-98e9-03c1a5872950","from":{"phone_number":"ACME","carrier":"TELNYX",'
            '"line_type":"VoIP"},"to":[{"phone_number":"+79161234567","status":"queued","carrier":"MTS",'
            '"line_type":"Wireless"}],"text":"Your order is ready.","media":[],'
            '"webhook_url":null,"webhook_failover_url":null,"encoding":"GSM-7","parts":1,"tags":[],'
            '"cost":{"amount":"0.0051","currency":"USD"},"received_at":"2023-08-24T18:10:02.574Z",'
            '"sent_at":null,"completed_at":null,"valid_until":null,"errors":[]}}'
        ),
    ),
    "smsc": (200, '{"id":"%016d","cnt":1}'),
    "smsru": (
        200,
        (
            '{"status":"OK","status_code":100,"sms":{"79161234567":{"status":"OK","status_code":100,'
            '"sms_id":"000000-%08d"}},"balance":4122.56}'
        ),
    ),
    "smsaero": (
        200,
        (
            '{"success":true,"data":{"id":1%09d,"from":"ACME","number":"79161234567","text":'
            '"Your order is ready.","status":0,"extendStatus":"queue","channel":'
            '"INTERNATIONAL","cost":"1.95","dateCreate":1511153253,"dateSend":1511153253},'
            '"message":null}'
        ),
    ),
    "exolve": (200, '{"message_id":"%018d"}'),
    "kannel": (202, "0: Accepted for delivery"),
    "jasmin": (200, 'Success "%036d"'),
    "android": (
        202,
        (
            '{"id":"%016d","deviceId":"PyDmBQZZXYmyxMwED8Fzy","state":"Pending","isHashed":false,'
            '"isEncrypted":false,"recipients":[{"phoneNumber":"+79161234567","state":"Pending"}],'
            '"states":{}}'
        ),
    ),
    "textbee": (
        201,
        (
            '{"data":{"success":true,"message":"SMS added to queue","smsBatchId":"%024d",'
            '"recipientCount":1}}'
        ),
    ),
}
"""Status and body by kind, after the providers' documentation. `%0Nd` becomes a new id."""
LENGTH_HEADER = b"content-length:"


class SinkConnection(asyncio.Protocol):
    """One connection: answers each complete request at once."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._has_id = b"%0" in answer
        self._received = b""
        self._answered = id(self) % 100_000 * 100
        """The last id in an answer; connections start with different ones."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the answers."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        """Answer if the request is complete now; a client sends one request at a time."""
        self._received += data
        head, head_end, body = self._received.partition(b"\r\n\r\n")
        if not head_end:
            return
        start = head.lower().find(LENGTH_HEADER)
        length = head[start + len(LENGTH_HEADER) :].partition(b"\r\n")[0] if start >= 0 else b"0"
        if len(body) < int(length):
            return
        self._received = b""
        self._answered += 1
        self._transport.write(self._answer % self._answered if self._has_id else self._answer)


def http_answer(status: int, body: str) -> bytes:
    """Return a response, with the place of the id in its body."""
    length = len(body % 1 if "%0" in body else body)
    media_type = "application/json" if body.startswith("{") else "text/plain"
    head = f"HTTP/1.1 {status} OK\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n"
    return f"{head}{body}".encode()


async def main() -> None:
    """Serve each kind on a port of its own until SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    urls = {}
    for kind, (status, body) in ANSWERS.items():
        answer = http_answer(status, body)
        server = await loop.create_server(
            lambda answer=answer: SinkConnection(answer),  # type: ignore[misc]  # a default binds it
            "127.0.0.1",
            0,
        )
        urls[kind] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    print(json.dumps(urls), flush=True)
    await stopped.wait()


if __name__ == "__main__":
    uvloop.run(main())
