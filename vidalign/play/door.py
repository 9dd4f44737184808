"""Who may open the page: the link with the token, once, and then the browser that came with it."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping


class Door:
    """token: opens the page any number of times; empty = a new one, which opens it once.

    A browser that came with the token gets a cookie, which lets it come back until the server ends. The cookie's name
    has the port, because browsers share cookies among all ports of a host.
    """

    def __init__(self, token: str = "", port: int = 0) -> None:
        self.token, self.cookie, self.key = (
            token or secrets.token_urlsafe(24),
            f"vidalign_play_{port}",
            secrets.token_urlsafe(32),
        )
        """What the link has; name and value of the cookie."""
        self._once, self._used = not token, False

    def opens(self, token: str) -> bool:
        """Whether a link's token is right; the one-time token is used up then."""
        if (self._once and self._used) or not _same(token, self.token):
            return False
        self._used = True
        return True

    def knows(self, cookies: Mapping[str, str]) -> bool:
        """Whether a request comes from a browser that was let in."""
        return _same(cookies.get(self.cookie, ""), self.key)

    @staticmethod
    def same_page(headers: Mapping[str, str]) -> bool:
        """Whether a websocket is opened by a page of this server, not by one of another site."""
        origin, host = headers.get("origin", ""), headers.get("host", "")
        return bool(host) and origin in (f"http://{host}", f"https://{host}")


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
