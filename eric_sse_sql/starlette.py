"""``sse_response``: a listener's events over HTTP, for Starlette and FastAPI. It needs the extra ``[starlette]``."""

from __future__ import annotations

from contextlib import aclosing

try:
    from anyio import CancelScope
    from sse_starlette.sse import EventSourceResponse
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise ImportError('sse-starlette is needed: run `pip install "eric_sse_sql[starlette]"`') from error

from eric_sse.exception import InvalidListenerException

from eric_sse_sql.arguments import YEAR_SECONDS, validate_number, validate_type
from eric_sse_sql.channels import SqlSSEChannel
from eric_sse_sql.streams.frames import HEARTBEAT_SECONDS, LEAST_HEARTBEAT_SECONDS
from eric_sse_sql.streams.source import in_thread

NO_LISTENER = "the channel has no such listener"


def sse_response(
    channel: SqlSSEChannel,
    listener_id: str,
    request: Request,
    *,
    heartbeat: float = HEARTBEAT_SECONDS,
    last_event_id: str | None = None,
) -> Response:
    """A response that streams the events of a listener: what an endpoint of Starlette or FastAPI returns.

    It starts the listener, and sends what :meth:`SqlSSEChannel.sse_stream` gives, after the event that the browser
    names as ``Last-Event-ID``. It ends when the client goes away, when the server shuts down, and when the listener is
    deleted by any process, with an event of the type "gone". A browser then asks once more and gets 404: a listener
    that the channel does not have is refused by an ``HTTPException`` before anything is sent.

    Endpoints may be functions and coroutines: no statement runs before the response is sent, and none on the event
    loop.

    :param channel: any handle on the channel: one that a request loads, or one that the application keeps
    :param request: of the browser
    :param heartbeat: seconds without an event after which a comment is sent, to keep the connection open
    :param last_event_id: the last event that the client has seen, where the request has no such header: a page that is
        loaded again can't send it
    :raises RepositoryError: for arguments of other types, and a heartbeat that is no number of seconds
    """
    validate_type("channel", channel, SqlSSEChannel, "pass what load_one of a SqlSSEChannelRepository returns")
    validate_number("heartbeat", heartbeat, LEAST_HEARTBEAT_SECONDS, YEAR_SECONDS)
    seen = request.headers.get("Last-Event-ID") or last_event_id or None
    return _EventStream(channel, listener_id, seen, heartbeat)


class _EventStream(EventSourceResponse):
    """Looks up the listener when it is sent. Heartbeats come from the stream; the base class's own wait for a year."""

    def __init__(self, channel: SqlSSEChannel, listener_id: str, last_event_id: str | None, heartbeat: float) -> None:
        super().__init__(iter(()), ping=YEAR_SECONDS)
        self._channel = channel
        self._listener_id = listener_id
        self._last_event_id = last_event_id
        self._heartbeat = heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        channel, store = self._channel, self._channel.identity_map.store
        try:
            if store is None:
                listener = channel.get_listener(self._listener_id)
            else:
                listener = await in_thread(store.database, channel.get_listener, self._listener_id)
        except InvalidListenerException as error:
            raise HTTPException(404, NO_LISTENER) from error
        listener.start()
        self._frames = self.body_iterator = channel.sse_stream(listener, self._last_event_id, self._heartbeat)
        await super().__call__(scope, receive, send)

    async def _stream_response(self, send: Send) -> None:
        """Send the events. The method of the base class sends as well, and takes as much time as all else together."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._frames) as frames:
                async for frame in frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
        finally:  # the server may be shutting down, which cancels this: the response is complete all the same
            self.active = False
            with CancelScope(shield=True):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    stream_response = _stream_response  # its name in sse-starlette 2
