"""Errors in the form of OpenAI's API: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from flowturbo.checks import shown
from flowturbo.messages import did_you_mean
from flowturbo.sampling_checks import NotFinite
from flowturbo.serve.engine import Busy, Cancelled, Expired
from flowturbo.serve.safeguards import Blocked, CheckFailed
from flowturbo.serve.schema import EditRequest

__all__ = ["ApiError", "of_exception"]

_PARAM = re.compile(r"(\w+)(?:=|\[|:| '| of \d)")  # how messages begin


class ApiError(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status.
        message: one line for the client.
        param: the field it is about.
        code: a word for programs.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def fault(self) -> bool:
        """Whether the server is at fault, for its log."""
        return self.code in ("internal_error", "checker_failed")

    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        if self.code == "moderation_blocked":
            kind = "image_generation_user_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def of_exception(error: BaseException, begun: bool = False) -> ApiError:
    """What the client is told about an exception; 500 if the request did not cause it.

    Tasks check their input before the first evaluation of the model, so errors before that are the
    client's. Later ones are the server's, except images that are not finite.

    Args:
        error: what was raised.
        begun: whether that was after the first evaluation.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, (RequestValidationError, ValidationError)):
        return _invalid(error)
    if isinstance(error, Busy):
        seconds = max(1, min(600, round(error.retry_after + 0.5)))
        return ApiError(
            429, f"{error}; try again in {seconds} s", code="queue_full",
            headers={"Retry-After": str(seconds)},
        )  # fmt: skip
    if isinstance(error, Expired):
        return ApiError(504, str(error), code="timeout")
    if isinstance(error, Cancelled):
        return ApiError(503, str(error), code="cancelled", headers={"Retry-After": "1"})
    if isinstance(error, Blocked):
        return ApiError(
            400, f"the request was rejected by the safeguards of the server: {error}",
            code="moderation_blocked",
        )  # fmt: skip
    if isinstance(error, CheckFailed):
        return ApiError(
            503, "a checker of requests did not answer, so no image is generated; try again",
            code="checker_failed", headers={"Retry-After": "5"},
        )  # fmt: skip
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, ImportError) and "pip install" in str(error):  # an extra is missing
        return ApiError(501, str(error), code="not_installed")
    if isinstance(error, NotFinite) or (isinstance(error, ValueError) and not begun):
        found = _PARAM.match(str(error))
        param = found[1] if found and found[1] in ("image", *EditRequest.model_fields) else None
        return ApiError(400, str(error), param=param, code="invalid_value")
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def _invalid(error: RequestValidationError | ValidationError) -> ApiError:
    """The first error of pydantic, with the field and its value."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "tuple[int,int]")]
    name = ".".join(place) or "body"
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(place[-1], list(EditRequest.model_fields))
        return ApiError(400, f"{name}: is not a field{hint}", param=name, code="unknown_parameter")
    if first["type"] == "json_invalid" or name == "body":
        return ApiError(400, "the body is not a JSON object; send it as application/json")
    if first["type"] == "missing":
        return ApiError(400, f"{name}: is missing", param=name, code="missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    message = f"{name}={shown(first['input'])}: {message}"
    return ApiError(400, message, param=name, code="invalid_value")
