"""Simulated upstreams: engines and commercial APIs that behave, and misbehave, like the real ones.

`engine` is a vLLM server with a real-time batching model and no GPU; `api` and `anthropic` are
commercial APIs that keep their own bill. Tests, CI and `breakeven demo` use the same ones, over
real sockets. They are honest about themselves: `server: breakeven-sim` on every response and
`sim` in every version and fingerprint.

Nothing is imported here, so that `python -m proxy.demo.engine` runs its module only once.
"""
