"""Breakeven: a gateway that sends each LLM request wherever the next token is cheapest."""

__version__ = "0.1.0"
