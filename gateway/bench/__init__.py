"""Measures what the gateway costs, beside nginx and the Rust routers, in one run on one machine.

From the folder `gateway`: `python -m bench`. See docs/performance.md for the method.
"""
