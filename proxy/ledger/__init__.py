"""What is true: one file (SQLite now, PostgreSQL to follow) of rows that are appended and never edited.

`journal` writes (acknowledged means durable), `keys` knows who may call, `verify` recomputes every sum.
Nothing is imported here, so that a command that needs one part does not load the rest.
"""
