"""A simulated exchange that speaks Binance Spot's public protocol over TLS; for the demo, tests and benchmarks.

`market` invents what happens, `frames` writes it as WebSocket frames, `server` sends them, `rest` answers questions,
`faults` breaks things on request, `truth` writes down exactly what was generated, `replay` sends recorded frames
instead.
"""
