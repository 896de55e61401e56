"""A seed, a fake clock, a thousand bad days: the real gateway in one event loop whose time is virtual.

Real are the handler, the dispatcher, the planner, the board, the scraper, the purse, the journal's code and its SQLite
file, the keys and the chores: all that `proxy.main.Gateway` puts together. Faked are the edges: clients (clients.py),
engines and APIs (fleet.py), the disk's moods and the writer's thread (disk.py), the clock and chance (clock.py).

The same seed gives the same events, so a failure is found again: `python -m tests.simulation --seed N`.
"""
