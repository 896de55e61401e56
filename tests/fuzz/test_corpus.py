"""Every input of the corpus, through its target, without atheris: what was once a finding stays mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import __main__ as runner
from tests.fuzz import seeds, watch
from tests.fuzz.draw import Draw, written
from tests.fuzz.targets import TARGETS, target

CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_input_of_the_corpus_breaks_a_promise(path):
    target(path.parent.name)(path.read_bytes())


def test_every_target_has_a_corpus_and_it_stays_small():
    assert {path.parent.name for path in INPUTS} == set(TARGETS)
    assert sum(path.stat().st_size for path in INPUTS) < 300_000


def test_the_hand_made_inputs_are_those_that_seeds_writes():
    made = seeds.inputs()
    assert {key: (CORPUS / key[0] / key[1]).read_bytes() for key in made} == made


def test_what_is_written_is_taken_apart_again():
    draw = Draw(written(b"data: a\n\n", options=513, cuts=(3, 7)))
    assert (draw.body, draw.options, list(draw.pieces())) == (b"data: a\n\n", 513, [b"dat", b"a: a", b"\n\n"])
    assert (draw.option(3), draw.option(3), draw.options) == (0, 0, 57)
    assert [Draw(data).body for data in (b"", b"\0", b"ab\0\0\0\0")] == [b"", b"", b"ab"]
    long = Draw(written(b"data: xyz", repeat=b"xyz")).body
    assert len(long) > 60_000 and long.startswith(b"data: xyzxyz")


def test_a_call_that_takes_too_long_is_noticed(monkeypatch):
    monkeypatch.setattr(watch, "allowed_s", 0.0)
    with pytest.raises(watch.Hang):
        watch.timed(sum, range(10_000))


@pytest.mark.parametrize(("name", "module", "function"), [
    ("stream", "stream", "relay"), ("events", "events", "relay"), ("request", "request", "upstream_body"),
    ("metrics", "metrics", "read_metrics"),
    ("answer", "answer", "read_usage"), ("reply", "reply", "heard")])
def test_a_target_whose_parser_is_broken_notices_it(name, module, function, monkeypatch):
    """A parser that gives nothing back breaks a promise on some input of the corpus, or the target guards nothing."""
    monkeypatch.setattr(f"tests.fuzz.targets.{module}.{function}", lambda *_, **__: None)
    broken = 0
    for path in sorted((CORPUS / name).iterdir()):
        try:
            target(name)(path.read_bytes())
        except Exception:
            broken += 1
    assert broken


def test_where_atheris_is_not_make_fuzz_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["make fuzz"])
    assert runner.main() == 2
    assert "Linux and Python 3.11 to 3.14" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--targets", "x"], ["--replay", "nowhere"], ["--replay", "nowhere/stream-x"]])
def test_wrong_use_of_make_fuzz_is_told(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["make fuzz", *arguments])
    with pytest.raises(SystemExit) as caught:
        runner.main()
    assert caught.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_an_input_is_replayed_by_its_file(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["make fuzz", "--replay", str(CORPUS / "stream" / "crlf")])
    assert runner.main() == 0
    assert "its promises hold" in capsys.readouterr().out
