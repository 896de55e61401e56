"""The economics, pure: no I/O, no clock, no randomness, no async; standard library only.

Time and chance come in as arguments. Everything else in the project fetches facts, calls
this room, and carries out what it says.
"""
