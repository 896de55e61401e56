"""The parsers under fire: whatever bytes come, the targets' promises hold.

    targets/       one module per parser: `run(data)` raises when a promise is broken
    draw.py        an input taken apart: its body, and how it is handed over
    watch.py       processor time of one call of a parser
    corpus/        inputs worth keeping: written by hand, recorded, found by fuzzing
    test_corpus.py replays them all in `make test`, without atheris
    __main__.py    `make fuzz`: looks for new ones with atheris, guided by coverage
    seeds.py       writes the hand-made part of the corpus

A finding is kept in .fuzz/findings/ and replayed with `make fuzz ARGS="--replay FILE"`; mended, it moves
into the corpus.
"""
