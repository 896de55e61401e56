"""Who we call: one narrow interface, and the two ways of reaching an upstream.

Importing this package loads nothing; `factory.build` loads what the backend's kind needs.
"""
