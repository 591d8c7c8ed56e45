"""The command line, `k2ray up | status | down | ...`: the one part of k2ray/ that may import actors and serve."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; our own errors end it with their message, not with a traceback."""
    from k2ray.cli.app import app
    from k2ray.cli.console import complain
    from k2ray.errors import K2rayError

    try:
        app()
    except K2rayError as error:
        complain(str(error))
        sys.exit(1)
