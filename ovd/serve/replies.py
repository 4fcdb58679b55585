"""Replies to requests that are refused or fail."""

from typing import cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ovd.serve.limits import Refusal

FAILURE = "The server failed to process this request; its terminal shows the error."

_SENTENCES = {
    404: "Nothing exists at this address; /docs lists all addresses.",
    405: "This address does not support this method; /docs lists the methods.",
}


def refusal_reply(refusal: Refusal) -> JSONResponse:
    """Return a refusal as JSON: {"error": its sentence}."""
    headers = {"retry-after": "1"} if refusal.status == 503 else None
    return JSONResponse({"error": refusal.sentence}, refusal.status, headers)


async def on_refusal(request: Request, error: Exception) -> Response:
    """Return the reply to a request that a route refuses."""
    return refusal_reply(cast(Refusal, error))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Return the reply to a request that has no route."""
    problem = cast(HTTPException, error)
    sentence = _SENTENCES.get(problem.status_code, problem.detail)
    return JSONResponse({"error": sentence}, problem.status_code, problem.headers)


async def on_failure(request: Request, error: Exception) -> Response:
    """Return the reply to a request at which the server itself failed; the terminal shows where."""
    return JSONResponse({"error": FAILURE}, 500)
