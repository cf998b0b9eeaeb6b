"""Reading downloaded Excel workbooks back in tests."""

import io
from typing import Any

import httpx
import openpyxl
from openpyxl.workbook import Workbook

XLSX_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"


def load(response: httpx.Response) -> Workbook:
    """Return the workbook of a response."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith(XLSX_TYPE)
    return openpyxl.load_workbook(io.BytesIO(response.content))


def values(workbook: Workbook) -> list[tuple[Any, ...]]:
    """Return the rows of the first sheet, with the header."""
    return list(workbook.worksheets[0].iter_rows(values_only=True))
