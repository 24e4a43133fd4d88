"""The page that signs a browser in."""

from __future__ import annotations

from beamhub.api.routes import Call, Content, route

POLICY = "default-src 'none'; frame-ancestors 'self'"


@route("GET", "signed-in", media=("text/html",))
async def signed_in(call: Call) -> Content:  # noqa: ARG001 (as every route)
    """An empty page. A browser that opens it, also in a hidden frame of a page of the same host, has passed
    the hub's authorisation and has the service's cookies: that page's scripts may then call the API, with the
    value of the cookie `_xsrf` as `X-XSRFToken`.
    """
    return Content(b"<!doctype html><title>beamhub</title>", "text/html", {"Content-Security-Policy": POLICY})
