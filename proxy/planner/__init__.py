"""What a token costs, and whether to self-host: arithmetic over models, cards, prices and traffic. Leans on core only.

`models` and core's `gpus` are the tables; `fit` says what is left of a card's memory, `throughput` how fast it then is,
`cost` what a token costs at a utilisation, `breakeven` from which utilisation on that beats an API, and `article`
holds a well-known article's claims against all of it. Nothing here reads a file or a clock.
"""
