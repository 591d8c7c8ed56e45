"""What an exchange says about its symbols, by REST. Only the adapter knows paths and answers; this does the I/O.

A feed does not wait for it for long and never dies of it: until it answers, currencies are guessed.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Awaitable, Callable, Sequence

import httpx

from k2ray.errors import BadFrame, ExchangeUnavailable
from k2ray.exchanges.base import ExchangeAdapter, Instrument
from k2ray.feed.transport import explain, refused
from k2ray.logs import get_logger

REQUEST_TIMEOUT_S = 10.0

_log = get_logger(__name__)


async def fetch_instruments(
    adapter: ExchangeAdapter,
    rest_url: str,
    tls: ssl.SSLContext,
    symbols: Sequence[str],
    permit: Callable[[str, int], Awaitable[None]],
) -> dict[str, Instrument]:
    """Ask the exchange about symbols; those that it does not know are left out and logged.

    Args:
        adapter: Knows paths and answers.
        rest_url: REST base URL.
        tls: From `transport.tls_context`.
        symbols: The exchange's own symbols.
        permit: Waits until the exchange's limit on request weight allows the next request.

    Raises:
        TooOften: It says so (429, 418).
        ExchangeUnavailable: It does not answer or not as documented; try again with backoff.
    """
    found: dict[str, Instrument] = {}
    async with httpx.AsyncClient(verify=tls, timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
        get = functools.partial(_get, client, functools.partial(permit, "weight", adapter.instruments_weight))
        for path in adapter.instrument_paths(symbols):
            body = await get(rest_url + path)
            if body is not None:
                found.update(_parse(adapter, body))
                continue
            # One unknown symbol refuses the whole request: ask for each by itself.
            for symbol in symbols:
                for single in adapter.instrument_paths([symbol]):
                    body = await get(rest_url + single)
                    if body is not None:
                        found.update(_parse(adapter, body))
            break
    wanted = {symbol: found[symbol] for symbol in symbols if symbol in found}
    if len(wanted) < len(symbols):
        _log.warning("symbols_unknown_to_exchange", symbols=sorted(set(symbols) - set(wanted)))
    return wanted


async def _get(client: httpx.AsyncClient, permit: Callable[[], Awaitable[None]], url: str) -> bytes | None:
    """Return the answer's body, None if the exchange refuses this question (400)."""
    await permit()
    try:
        response = await client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise ExchangeUnavailable(f"{url.partition('?')[0]}: {explain(error.__cause__ or error)}") from None
    if response.status_code == httpx.codes.BAD_REQUEST:
        return None
    if response.status_code != httpx.codes.OK:
        message = f"{url.partition('?')[0]}: HTTP {response.status_code}"
        headers = response.headers
        raise refused(message, response.status_code, headers.get("Retry-After"), headers.get("Date"))
    return response.content


def _parse(adapter: ExchangeAdapter, body: bytes) -> dict[str, Instrument]:
    try:
        return adapter.parse_instruments(body)
    except BadFrame as error:
        raise ExchangeUnavailable(str(error)) from None
