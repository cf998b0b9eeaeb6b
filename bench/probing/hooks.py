"""Functions that adapt schemathesis to mailer's API, for `schema.py`.

schemathesis loads this file itself and calls the functions. One of its checks fails if the API
rejects data that the schema allows. But some of mailer's rules cannot be expressed by a JSON
schema, such as "the end is after the start". So `valid_data_is_accepted` replaces this check: it is
the same, but it ignores the errors listed here. All other checks are unchanged.
"""

import itertools
from http import HTTPStatus
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response
from schemathesis.openapi.checks import RejectedPositiveData
from schemathesis.specs.openapi.checks import positive_data_acceptance

BEYOND_SCHEMA = (
    ("after", "cannot be given together with before"),
    ("sort", "is not possible together with these filters"),
    ("key", "is required with before or after in a sorted list"),
    ("from", "must lie between the years 1970 and 9000"),
    ("to", "must lie between the years 1970 and 9000"),
    ("to", "must not be before from"),
    ("phones", "must not name a phone twice"),
    ("phones", "or ids must be given"),
    ("ids", "must be a list of ids of clients"),  # 1.0 is an integer in a schema
    ("labels", "must be a list of up to 10 labels of 1 to 32 characters"),  # visible ones
    ("datetime_start", "must lie between the years 1970 and 9000"),
    ("datetime_end", "must lie between the years 1970 and 9000"),
    ("datetime_end", "must be after datetime_start"),
    ("datetime_end", "must be in the future"),
    ("send_interval_time_start", "is required together with send_interval_time_end"),
    ("send_interval_time_end", "is required together with send_interval_time_start"),
    ("send_interval_time_end", "must differ from send_interval_time_start"),
    ("client_filter", "must have an entry; null means everybody"),
    ("client_filter.tags", "must contain a visible character in every tag"),
    ("client_filter.lists", "must contain a visible character in every name"),
    ("text", "must contain a visible character"),
    ("client_filter.time_zones", "must be an IANA time zone, such as Europe/Moscow"),
    ("actor_id", "requires the parameter of its kind"),
    ("target_id", "requires the parameter of its kind"),
    ("time_zone", "must be an IANA time zone, such as Europe/Moscow"),
    ("gateway", "must be one of: default"),
    ("failed_since", "give either delivery_id or failed_since"),
    ("events", "must have each event once"),
    ("name", "must be 1 to 64 characters on one line"),
    ("delivery_id", "must be the id of a delivery"),  # 1.0 is an integer in a schema
)
"""Errors, by field and message, of rules that a schema cannot express: rules between fields, and
rules about dates, visible characters, time zones, whose list changes, and configured gateways."""
FIELDS_BEYOND_SCHEMA = {"url"}
"""Fields for which a schema cannot express any of the rules: which hosts a webhook may have."""
UNKNOWN_NAMES = (
    "is the phone of no client",
    "is the id of no client",
    "must name existing lists; not found: ",
)
"""Beginnings of messages about clients and lists that do not exist, whatever the field."""
HEADER_RULES = (
    "is required",
    "appears more than once",
    "is not one of the columns phone, operator_code, tag, time_zone",
    "is not one of the columns phone, opted_out_at",
    "the header is longer than 16000 characters",
    "must name a field for each column",
    "must have one entry for each of up to 100 columns",
    "the header is not well-formed CSV: a quote or a line's end is out of place",
    "the header is not UTF-8",
)
"""Messages of errors in the first line of a CSV file, or in the choice of its columns. A schema
cannot express rules about it, because in the schema the whole file is one string."""
IMPORT, OPT_OUT_IMPORT = "/api/v1/clients/import", "/api/v1/opt-outs/import"
DOWNLOADS = ("/api/v1/clients", "/api/v1/opt-outs", "/api/v1/mailings/{mailing_id}/messages")
"""Paths that also answer in CSV."""
DOWNLOAD_EVERY = 4
"""Every fourth call of these paths asks for CSV."""
IDEMPOTENT_EVERY = 4
"""Every fourth call keeps its Idempotency-Key. With the key in all calls, most would only get a
stored response."""
FIRST_PHONE = 79160000000
"""Added to a number that depends on the random body, to get a valid phone."""


@schemathesis.hook
def map_body(context: HookContext, body: Any) -> Any:  # noqa: ANN401  # a random JSON value
    """Turn about half of the random import files into almost valid ones.

    Such a file has a header and one line, with a valid phone and the random text as the tag.
    """
    operation = context.operation
    is_import = operation is not None and operation.path == IMPORT
    if not is_import or not isinstance(body, str) or len(body) % 2:
        return body
    phone = FIRST_PHONE + sum(map(ord, body))
    return f"phone,tag\n{phone},{body}"


@schemathesis.check
def valid_data_is_accepted(ctx: CheckContext, response: Response, case: Case[Any]) -> bool | None:
    """Fail when data that the schema allows is rejected, unless by a rule it cannot express."""
    try:
        return positive_data_acceptance(ctx, response, case)
    except RejectedPositiveData:
        is_invalid = response.status_code == HTTPStatus.BAD_REQUEST
        if is_invalid and _are_all_beyond_schema(case, response.json()):
            return None
        raise


def _are_all_beyond_schema(case: Case[Any], problem: dict[str, Any]) -> bool:
    """Return whether an error answer names only errors that a schema cannot express."""
    errors = problem.get("errors", ())
    if case.operation.path in {IMPORT, OPT_OUT_IMPORT}:
        return bool(errors) and all(error["message"] in HEADER_RULES for error in errors)
    return bool(errors) and all(
        error["field"] in FIELDS_BEYOND_SCHEMA
        or (error["field"], error["message"]) in BEYOND_SCHEMA
        or (error["field"] == "text" and " at character " in error["message"])
        or error["message"].startswith(UNKNOWN_NAMES)
        for error in errors
    )


_downloads, _idempotent_calls = itertools.count(1), itertools.count(1)


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:  # noqa: ARG001  # the signature of the hook
    """Ask for CSV in some of the calls, and remove most Idempotency-Keys."""
    if "Idempotency-Key" in case.headers and next(_idempotent_calls) % IDEMPOTENT_EVERY:
        del case.headers["Idempotency-Key"]
    is_download = case.operation.path in DOWNLOADS and case.method == "GET"
    if is_download and next(_downloads) % DOWNLOAD_EVERY == 0:
        case.headers["Accept"] = "text/csv"
