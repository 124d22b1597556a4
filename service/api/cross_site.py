"""A web page of somebody else must not change a model through the browser of whoever runs the service."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import CrossSite, told

READING = frozenset({"GET", "HEAD", "OPTIONS"})


class RefuseCrossSite:
    """Refuses requests that browsers mark as coming from another site (Fetch Metadata, `Sec-Fetch-Site`; without that,
    which browsers send to trustworthy addresses only, an `Origin` that is not this host).

    Without keys, listening on loopback keeps other machines out, but not a page in a browser on this one: it may send a
    form anywhere. Clients that are no browsers do not send the header and are not touched.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in READING:
            headers = dict(scope["headers"])
            site = headers.get(b"sec-fetch-site")
            if site == b"cross-site" or (site is None and _is_foreign(headers)):
                error = CrossSite("a page of another site sent this; use the service's own pages or a client program.")
                await told(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_foreign(headers: dict[bytes, bytes]) -> bool:
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower()
