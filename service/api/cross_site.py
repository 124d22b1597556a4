"""A web page of somebody else must not change a model through the browser of whoever runs the service."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import CrossSite, problem

READING = frozenset({"GET", "HEAD", "OPTIONS"})


class RefuseCrossSite:
    """Refuses requests that browsers mark as coming from another site (Fetch Metadata, `Sec-Fetch-Site`).

    Without keys, listening on loopback keeps other machines out, but not a page in a browser on this one: it may send a
    form anywhere. Clients that are no browsers do not send the header and are not touched.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in READING:
            site = next((value for name, value in scope["headers"] if name == b"sec-fetch-site"), b"none")
            if site == b"cross-site":
                error = CrossSite("a page of another site sent this; use the service's own pages or a client program.")
                await problem(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
