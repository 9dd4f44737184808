"""What a server answers instead of scores: ``{"error": {"type", "message", "fix"}}`` with an HTTP status."""

from __future__ import annotations

from typing import Any


class ServeError(Exception):
    """An answer without scores. retry_after: seconds after which the client should try again, 0 for none."""

    def __init__(self, status: int, kind: str, message: str, fix: str = "", *, retry_after: int = 0) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.fix, self.retry_after = status, kind, message, fix, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": {"type": self.kind, "message": self.message, "fix": self.fix}}

    def headers(self) -> dict[str, str]:
        """The HTTP headers of the answer."""
        more = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        return more | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


class LoadError(Exception):
    """A reward or an option with which no server can start; shown without a traceback."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(" - ".join(filter(None, (message, fix))))


def invalid(message: str, fix: str = "") -> ServeError:
    """The failure of a body that does not keep the wire format."""
    return ServeError(422, "invalid_request", message, fix)
