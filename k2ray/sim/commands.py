"""Requests that clients send over the WebSocket: subscribe, unsubscribe, list, set a property. Wording as Binance's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from k2ray.sim.frames import Form

if TYPE_CHECKING:
    from k2ray.sim.connection import Connection


def answer_command(connection: Connection, text: bytes, most_streams: int) -> tuple[bytes, bool]:
    """Carry out a request.

    Args:
        connection: Whose `streams` and `form` it changes.
        text: The request.
        most_streams: What a connection may subscribe to.

    Returns:
        The answer, and whether the streams changed.
    """
    try:
        request = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return b'{"error":{"code":3,"msg":"Invalid JSON"}}', False
    if not isinstance(request, dict):
        return b'{"error":{"code":2,"msg":"Invalid request: an object is expected"}}', False
    method, params, number = request.get("method"), request.get("params", []), request.get("id")
    answer: object = None
    changed = method in ("SUBSCRIBE", "UNSUBSCRIBE") and isinstance(params, list)
    if changed:
        streams = dict(connection.streams)
        for name in map(str, params):
            if method == "SUBSCRIBE":
                streams[name] = None
            else:
                streams.pop(name, None)
        if len(streams) > most_streams:
            return _error(f"Invalid request: more than {most_streams} streams", number), False
        connection.streams = streams
    elif method == "LIST_SUBSCRIPTIONS":
        answer = list(connection.streams)
    elif method == "SET_PROPERTY" and isinstance(params, list) and params[:1] == ["combined"]:
        connection.form = Form(combined=bool(params[-1]), microseconds=connection.form.microseconds)
    else:
        return _error(f"Invalid request: unknown variant `{method}`, or wrong params", number), False
    return msgspec.json.encode({"result": answer, "id": number}), changed


def _error(message: str, number: object) -> bytes:
    return msgspec.json.encode({"error": {"code": 2, "msg": message}, "id": number})


def shutdown_notice(event_us: int, form: Form) -> bytes:
    """Return the text that says that the server is about to go."""
    event = {"e": "serverShutdown", "E": event_us if form.microseconds else event_us // 1000}
    return msgspec.json.encode({"stream": "!serverShutdown", "data": event} if form.combined else event)
