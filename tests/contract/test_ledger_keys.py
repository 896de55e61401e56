"""Keys: shown once, kept as a digest, revoked within a second."""

import hashlib
import json
import sqlite3

import pytest
from typer.testing import CliRunner

from proxy.cli.keys import keys_app
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.keys import REFRESH_S, KeyRing, KeyStore, Principal, canonical_tags


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/ledger.db"


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_key_opens_and_only_it(url):
    keys = KeyStore(url)
    key_id, secret = keys.create("search", "team=search, app=chat")
    ring = KeyRing(url)
    assert secret.startswith("bk-") and len(secret) >= 40
    assert ring.authenticate(secret) == Principal(key_id, "search", "application", "app=chat,team=search")
    for wrong in ("", "bk-", secret[:-1], secret + "x", secret.upper(), "bk-" + "x" * 43, "\udcff\x00é"):
        assert ring.authenticate(wrong) is None
    ring.close()


def test_only_the_digest_is_kept(url, tmp_path):
    _, secret = KeyStore(url).create("search")
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in kept and secret[3:].encode() not in kept
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in kept


def test_a_revocation_holds_within_a_second_and_a_new_key_too(url):
    keys, clock = KeyStore(url), Clock()
    key_id, secret = keys.create("search")
    ring = KeyRing(url, clock=clock)
    assert ring.authenticate(secret)
    assert keys.revoke(key_id) is True
    assert ring.authenticate(secret)  # not looked yet
    clock.now += REFRESH_S
    assert ring.authenticate(secret) is None
    _, another = keys.create("chat", role="admin")
    clock.now += REFRESH_S
    assert ring.authenticate(another).role == "admin"
    assert len(ring) == 1 and ring.refresh() is False
    assert keys.revoke(key_id) is False
    with pytest.raises(KeyError):
        keys.revoke("key_none")


def test_known_keys_hold_while_the_ledger_is_away(url, tmp_path):
    _, secret = KeyStore(url).create("search")
    clock = Clock()
    ring = KeyRing(url, clock=clock)
    ring.close()
    (tmp_path / "ledger.db").rename(tmp_path / "aside.db")
    clock.now += REFRESH_S
    assert ring.authenticate(secret) and not ring.healthy
    (tmp_path / "aside.db").rename(tmp_path / "ledger.db")
    clock.now += REFRESH_S
    assert ring.authenticate(secret) and ring.healthy


def test_a_copy_put_in_the_ledger_s_place_is_asked_from_then_on(url, tmp_path):
    """The writer goes on with it; keys that are revoked there must not go on opening."""
    keys = KeyStore(url)
    key_id, secret = keys.create("search")
    clock = Clock()
    ring = KeyRing(url, clock=clock)
    with sqlite3.connect(tmp_path / "ledger.db") as whole, sqlite3.connect(tmp_path / "copy.db") as copy:
        whole.backup(copy)
    whole.close()
    copy.close()
    for old in tmp_path.glob("ledger.db*"):
        old.rename(tmp_path / f"old-{old.name}")
    clock.now += REFRESH_S
    assert ring.authenticate(secret) is not None and not ring.healthy  # it is away
    (tmp_path / "copy.db").rename(tmp_path / "ledger.db")
    keys.revoke(key_id)
    clock.now += REFRESH_S
    assert ring.authenticate(secret) is None and ring.healthy
    ring.close()


def test_a_key_that_makes_no_sense_is_refused(url):
    keys = KeyStore(url)
    for wrong in ({"name": " "}, {"name": "x", "role": "root"}, {"name": "x", "tags": "team"}):
        with pytest.raises(ValueError):
            keys.create(**wrong)
    assert keys.list() == []


@pytest.mark.parametrize("text, canonical", [
    ("", ""), (" b=2 ,a=1,", "a=1,b=2"), ("team=search", "team=search"), ("url=a:b/c", "url=a:b/c")])
def test_tags_have_one_spelling(text, canonical):
    assert canonical_tags(text) == canonical
    assert canonical_tags(canonical) == canonical


@pytest.mark.parametrize("text", [
    "a", "=1", "a=", "a=1,a=2", "a=b=c", "a=\x1b[31m", ",".join(f"t{n}=1" for n in range(17))])
def test_other_tags_are_refused(text):
    with pytest.raises(ValueError):
        canonical_tags(text)


def test_the_command_makes_lists_and_revokes(url, tmp_path):
    run = CliRunner().invoke
    create = ["create", "--name", "chat", "--tags", "app=chat", "--ledger", url, "--json"]
    made = json.loads(run(keys_app, create).stdout)
    assert KeyRing(url).authenticate(made["secret"]).id == made["id"]
    listed = run(keys_app, ["list", "--ledger", url])
    assert made["id"] in listed.stdout and made["secret"] not in listed.stdout
    (tmp_path / "config.yaml").write_text(f"ledger: {url}\n")
    config = str(tmp_path / "config.yaml")
    assert json.loads(run(keys_app, ["list", "--config", config, "--json"]).stdout)[0]["revoked"] is None
    assert run(keys_app, ["revoke", made["id"], "--ledger", url]).exit_code == 0
    assert run(keys_app, ["revoke", "key_none", "--ledger", url]).exit_code == 1
    assert json.loads(run(keys_app, ["list", "--ledger", url, "--json"]).stdout)[0]["revoked"]
    assert KeyRing(url).authenticate(made["secret"]) is None


@pytest.mark.parametrize("more", [["--role", "root"], ["--tags", "nope"], ["--ledger", "postgresql://h/d"],
                                  ["--config", "none.yaml"]])
def test_wrong_use_exits_2_with_one_line(url, more):
    result = CliRunner().invoke(keys_app, ["create", "--name", "x", "--ledger", url, *more])
    if "--config" in more:
        result = CliRunner().invoke(keys_app, ["create", "--name", "x", *more])
    assert result.exit_code == 2 and result.stderr.startswith("breakeven keys: ")


def test_keys_of_a_locked_ledger_are_not_made_in_silence(url):
    keys = KeyStore(url)
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="write lock"):
        keys.create("x")
    other.close()


def test_a_route_that_the_configuration_does_not_have_is_refused_with_the_nearest(url, tmp_path):
    run, config = CliRunner().invoke, tmp_path / "gateway.yaml"
    config.write_text(f"ledger: {url}\nroutes: {{gpt-4o: {{}}, llama-8b: {{}}}}\n")
    given = ["--config", str(config)]
    wrong = run(keys_app, ["create", "--name", "x", "--routes", "gpt-4o,lama-8b", *given])
    assert wrong.exit_code == 2 and wrong.output.count("\n") == 1
    assert "has no route 'lama-8b'; did you mean 'llama-8b'?" in wrong.output
    far = run(keys_app, ["create", "--name", "x", "--routes", "nope", *given])
    assert far.exit_code == 2 and "known are gpt-4o, llama-8b" in far.output
    assert KeyStore(url).list() == []
    made = run(keys_app, ["create", "--name", "x", "--routes", "gpt-4o,llama-8b", "--json", *given])
    assert made.exit_code == 0, made.output
    key_id = json.loads(made.output)["id"]
    assert run(keys_app, ["limit", key_id, "--routes", "gpt4o", *given]).exit_code == 2
    assert run(keys_app, ["limit", key_id, "--routes", "gpt4o", "--ledger", url]).exit_code == 0, "nothing is at hand"
