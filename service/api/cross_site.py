"""A web page of somebody else must not change a model through the browser of whoever runs the service."""

from collections.abc import Mapping

from service.errors import CrossSite

READING = frozenset({"GET", "HEAD", "OPTIONS"})


def check_same_site(method: str, headers: Mapping[bytes, bytes]) -> None:
    """Refuse requests that browsers mark as coming from another site (Fetch Metadata, `Sec-Fetch-Site`; without that,
    which browsers send to trustworthy addresses only, an `Origin` that is not this host).

    Without keys, listening on loopback keeps other machines out, but not a page in a browser on this one: it may send a
    form anywhere. Clients that are no browsers do not send the header and are not touched.

    Args: headers, with names in lower case. Raises: CrossSite.
    """
    if method in READING:
        return
    site = headers.get(b"sec-fetch-site")
    if site == b"cross-site" or (site is None and _is_foreign(headers)):
        raise CrossSite("a page of another site sent this; use the service's own pages or a client program.")


def _is_foreign(headers: Mapping[bytes, bytes]) -> bool:
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower()
