"""`python -m k2ray.cli` is the same as `k2ray`."""

from k2ray.cli import main

main()
