"""One test for every advisory that taught this gateway something, named after it.

ELSEWHERE says where a lesson is tested that has a file of its own; that those tests exist is a test, too.
"""

import ast
import asyncio
import functools
import hmac
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from proxy.demo.serving import serve
from proxy.ledger import keys as ledger_keys
from proxy.ledger.keys import KeyRing, KeyStore
from proxy.ledger.verify import verify
from proxy.server import auth
from tests.support.raw import spoken, statuses
from tests.support.world import world

ROOT = Path(__file__).resolve().parents[2]
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
NAMES = int(os.environ.get("RANDOM_NAMES", "3000"))  # 1000000 in the long form: about ten minutes

UPSTREAMS = "test_other_peoples_upstreams"
ELSEWHERE = {
    "CVE-2024-6587 CVE-2026-71211 CVE-2026-33340": f"{UPSTREAMS}.test_a_thousand_hostile_bodies_and_no_visit",
    "CVE-2026-24779 GHSA-3f6c-7fw2-ppm4": f"{UPSTREAMS}.test_no_media_url_in_any_spelling_is_fetched_or_passed_on",
    "CVE-2025-62426 CVE-2026-5497 CVE-2026-22778": f"{UPSTREAMS}.test_each_field_is_refused_by_name",
    "CVE-2026-48710 CVE-2026-48746": "test_roles.test_no_host_opens_a_door",
    "CVE-2026-35029 GHSA-qqcv-vg9f-5rr3 CVE-2026-6667": "test_roles.test_each_caller_gets_what_is_meant_for_it",
    "CVE-2026-42271 CVE-2026-30623 CVE-2026-40217": "test_roles.test_there_is_no_route_but_these",
    "PYSEC-2026-4074": "test_roles.test_each_caller_gets_what_is_meant_for_it",
    "CVE-2025-43859": "test_smuggling.test_refused_and_closed",
    "CVE-2026-22815": "test_smuggling.test_what_never_ends_is_cut_off_while_it_grows",
    "LiteLLM-24902": "test_secrets.test_no_secret_is_found_anywhere",
    "CVE-2026-33128 CVE-2026-44217 GHSA-p6xx-57qc-3wxr": "test_writers.test_what_is_written_as_an_event_is_read_as_one",
    "CVE-2020-7695": "test_writers.test_one_record_is_one_line",
    # money leaks
    "LiteLLM-34732 LiteLLM-40095":
        "../integration/test_budgets.test_a_hundred_at_once_do_not_overrun_a_team_and_a_cut_one_is_charged",
    "LiteLLM-40002 LiteLLM-26672": "../unit/core/test_budget_rules.test_a_hold_is_never_below_the_cost",
    "LiteLLM-33736 LiteLLM-36008 LiteLLM-37558": "../integration/test_disconnects.test_an_api_is_drained_for_its_usage",
}


@pytest.mark.parametrize("advisory", ELSEWHERE)
def test_the_lesson_is_tested(advisory):
    module, _, name = ELSEWHERE[advisory].rpartition(".")
    text = (ROOT / f"tests/security/{module}.py").read_text()
    assert re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE), ELSEWHERE[advisory]


# ---------------------------------------------------------------- keys
def test_CVE_2026_35030_two_keys_that_share_their_beginning_are_two(tmp_path, monkeypatch):
    """A cache keyed by the first characters of a token gave one caller another's rights."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    store, beginning = KeyStore(url), "k" * 64
    made = {}
    for role, end in (("application", "A"), ("admin", "B")):
        monkeypatch.setattr(ledger_keys.secrets, "token_urlsafe", lambda _, end=end: beginning + end)
        made[role] = store.create(role, role=role)[1]
    assert made["application"][:64] == made["admin"][:64]
    ring = KeyRing(url)
    for _ in range(2):  # the second time from whatever is kept
        assert {role: ring.authenticate(secret).role for role, secret in made.items()} == {role: role for role in made}
        for near in (made["admin"][:-1], made["admin"] + "A", made["admin"][:64], made["admin"].swapcase(), beginning):
            assert ring.authenticate(near) is None
    ring.close()


def test_CVE_2025_59425_CVE_2026_23996_unknown_and_wrong_keys_take_the_same_steps(tmp_path, monkeypatch):
    """Every key is hashed whole and compared in constant time, once, whether its digest is known or not."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    _, good = KeyStore(url).create("a")
    ring, compared = KeyRing(url), []
    compare = hmac.compare_digest

    def noted(a, b):
        compared.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(ledger_keys.hmac, "compare_digest", noted)
    for secret in (good, good[:-1] + "x", "x", "", "bk-" + "é" * 50, "\udcff"):
        compared.clear()
        assert (ring.authenticate(secret) is not None) == (secret == good)
        assert compared == [(64, 64)], secret
    ring.close()


SQL = ("' OR '1'='1", "'; DROP TABLE keys; --", '"; DELETE FROM requests; --', "bk-' UNION SELECT sha256 FROM keys --",
       "%27%20OR%201=1", "\\'; ATTACH DATABASE 'x' AS y; --", "admin'--", "1; SELECT load_extension('x')", "$(id)",
       "{{7*7}}", "%s%s%n", "${jndi:ldap://127.0.0.1/x}", "../../etc/passwd", "undefined", "[object Object]", "x" * 255,
       "bk-" + "A" * 300)


async def test_CVE_2026_42208_no_header_reaches_the_database_but_as_a_value(tmp_path, monkeypatch):
    """LiteLLM built SQL from the key, in the path that handles errors: before anybody was asked for one."""
    async with world(tmp_path, monkeypatch, engines=0, keys={"required": True}) as there:
        _, good = KeyStore(there.ledger).create("a", tags="team=search")
        there.gateway.keys.refresh()
        names = ("authorization", "x-api-key", "api-key", "x-breakeven-tags", "user-agent", "x-request-id",
                 "content-type", "x-forwarded-for", "openai-organization", "accept", "cookie", "referer")
        for text in SQL:
            words = set()
            for headers in ({"authorization": f"Bearer {text}"}, {"x-api-key": text}, {"api-key": text},
                            {"authorization": text}):
                status, _, body = await there.post(CHAT, **headers)
                assert status == 401 and text not in body.decode()
                words.add(body)
            assert len(words) <= 2, "unknown, or none given"
            for name in names:
                status, answered, body = await there.post(CHAT, **{"authorization": f"Bearer {good}", name: text})
                assert status in (200, 400, 401, 415), (name, text, body)
                assert all(text not in value for value in answered.values())
            assert (await there.post({**CHAT, "model": text}, authorization=f"Bearer {good}"))[0] in (404, 400)
        assert verify(there.ledger) == []
        with sqlite3.connect(there.gateway.journal.path) as ledger:
            assert ledger.execute("SELECT count(*) FROM keys").fetchone() == (1,)
            assert ledger.execute("SELECT DISTINCT tags FROM requests").fetchall() == [("team=search",)]


@pytest.mark.parametrize("sent", [b"", b" ", b"Bearer", b"Bearer ", b"bearer  ", b"Basic eDp5", b"\xff\xfe",
                                  b"Bearer \xc3\xa9", b"Bearer " + b"x" * 5000, b"Bearer a b", b"Token bk-x",
                                  b"Bearer bk-\xe2\x80\xa8x"])
def test_a_key_of_no_known_shape_is_nobodys(tmp_path, sent):
    ring = KeyRing(KeyStore(f"sqlite:///{tmp_path}/ledger.db").url)
    with pytest.raises(auth.Unauthorized) as refused:
        auth.authenticate({b"authorization": sent}, ring, ("admin",))
    assert "bk-" not in refused.value.message
    ring.close()


# ---------------------------------------------------------------- nothing runs, nothing is loaded
def test_CVE_2024_4264_CVE_2026_42203_GHSA_46cm_pfwv_cgf8_nothing_that_is_sent_is_run():
    """No eval, no pickle, no template from a string, no process, in anything that serves (the demo apart). One command
    may start a program, for what it says at its head; nothing that serves may import it (tests/test_tidy.py, DOORS)."""
    allowed = {("proxy/cli/pdf.py", "subprocess")}
    banned = {"eval", "exec", "compile", "__import__", "from_string", "literal_eval", "system", "popen", "Popen",
              "run_path", "create_subprocess_exec", "create_subprocess_shell", "unsafe_load", "load_extension"}
    modules = {"pickle", "marshal", "shelve", "dill", "subprocess", "code", "ctypes", "runpy", "fastapi.sse",
               "fastapi.staticfiles", "multipart", "python_multipart", "fastapi.templating"}
    found = []
    for path in sorted((ROOT / "proxy").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("proxy/demo/"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                owner = getattr(node.func.value, "id", "") if isinstance(node.func, ast.Attribute) else "builtins"
                pattern = called == "compile" and owner != "builtins"  # of `re`, or of a query: no code
                if called in banned and not pattern:
                    found.append(f"{name}:{node.lineno}: {called}")
            elif isinstance(node, ast.Import | ast.ImportFrom):
                base = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                found += [f"{name}:{node.lineno}: {module}" for module in base
                          if module in modules and (name, module) not in allowed]
    assert found == []


def test_the_one_program_that_a_command_starts_is_chosen_by_nobody_outside():
    """Its names and arguments are written out in the file; there is no shell; only the report's command imports it."""
    tree = ast.parse((ROOT / "proxy/cli/pdf.py").read_text())
    (run,) = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "run")
    assert not {keyword.arg for keyword in run.keywords} & {"shell", "env", "executable"}
    assert {node.id for node in ast.walk(run.args[0]) if isinstance(node, ast.Name)} == {
        "browser", "FLAGS", "sandbox", "folder", "pdf", "page"}
    users = [path for path in (ROOT / "proxy").rglob("*.py") if "proxy.cli.pdf" in path.read_text()]
    assert users == [ROOT / "proxy/cli/report.py"]


def test_PYSEC_2026_2_every_package_is_pinned_by_hash_and_the_malicious_ones_are_not_among_them():
    """Each line of a lock is a version with hashes; what a list asks for and why stands in pyproject.toml."""
    for name in ("run.txt", "dev.txt"):
        entries = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements" / name).read_text())
        entries = [entry for entry in entries if not entry.startswith("#")]
        assert len(entries) > 20
        for entry in entries:
            head = entry.split("\n")[0]
            assert re.fullmatch(r"[a-z0-9._-]+(?:\[[a-z,]+\])?==[A-Za-z0-9.+]+(?: ; [^\\]+)? \\", head), head
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry) and " @ " not in entry and "git+" not in entry, head
            assert "# via" in entry, f"{head}: nobody asked for it"
            assert not re.match(r"litellm==1\.82\.[78]\b", head)
    assert "!=1.82.7,!=1.82.8" in (ROOT / "pyproject.toml").read_text()


def test_PYSEC_2026_2_a_start_of_python_runs_nothing_of_the_environment(tmp_path):
    """`test_tidy` names the .pth files that may be there; this asks Python itself what they load."""
    done = subprocess.run([sys.executable, "-c", "import sys; print(*sorted(m.split('.')[0] for m in sys.modules))"],
                          capture_output=True, text=True, check=True, cwd=tmp_path)
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names) - {"__main__", "sitecustomize", "usercustomize"}
    assert not {name for name in foreign if not name.startswith(("__editable__", "_distutils_hack"))}, foreign


# ---------------------------------------------------------------- sizes
async def test_CVE_2025_69228_CVE_2025_69229_no_request_is_unpacked(tmp_path, monkeypatch):
    """A thousand to one: the bytes are refused by their name, and never read."""
    bomb = zlib.compress(b" " * 20_000_000, 9)
    async with world(tmp_path, monkeypatch, engines=0) as there:
        for encoding in ("gzip", "deflate", "br", "zstd", "x-gzip", "gzip, gzip", "identity, gzip", "GZIP"):
            for path in ("/v1/chat/completions", "/v1/embeddings", "/admin/switch", "/nowhere"):
                status, headers, body = await there.post(bomb, path, content_encoding=encoding)
                assert (status, json.loads(body)["error"]["code"]) == (415, "unsupported_media_type")
                assert headers["connection"] == "close"
        pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in json.dumps(CHAT).encode()) + b"0\r\n\r\n"
        said, _ = await spoken(there.url, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                               b"application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces, 1)
        assert statuses(said) == [200], "many small chunks are a body like any other"


class Bomb:
    """An upstream whose answer unpacks to 200 MB, and says so or not."""

    def __init__(self, encoding, packed):
        self.encoding, self.packed, self.asked = encoding, packed, []

    async def __call__(self, scope, receive, send):
        self.asked.append(dict(scope["headers"]).get(b"accept-encoding", b""))
        kind = b"text/event-stream" if len(self.asked) % 2 else b"application/json"
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(self.packed))]
        await send({"type": "http.response.start", "status": 200, "headers": [
            *headers, *([(b"content-encoding", self.encoding)] if self.encoding else [])]})
        await send({"type": "http.response.body", "body": self.packed})


@functools.cache
def packed():
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"identity, gzip", b""],
                         ids=["gzip", "deflate", "br", "a list", "unsaid"])
async def test_CVE_2025_69228_no_answer_is_unpacked_and_none_was_asked_to_be_packed(tmp_path, monkeypatch, encoding):
    bomb = Bomb(encoding, packed())
    async with serve(bomb) as url, world(tmp_path, monkeypatch, engines=0, api={"url": url}) as there:
        before = resident_mib()
        for stream in (True, False):
            status, _, body = await there.post({**CHAT, "stream": stream})
            assert (status == 502 or b"error" in body) and len(body) < 4096, (status, body[:200])
            assert b"[DONE]" not in body
        assert resident_mib() - before < 60, "it unpacks to 200 MB"
        assert set(bomb.asked) <= {b"", b"identity"}, "nothing packed is asked for"


async def test_CVE_2025_62727_CVE_2024_8984_no_ranges_and_no_forms(tmp_path, monkeypatch):
    """Nothing here serves files or reads forms: a thousand ranges and a boundary without end are words in a header."""
    async with world(tmp_path, monkeypatch, engines=0) as there:
        ranges = "bytes=" + ",".join(f"{at}-" for at in range(1000))
        for path in ("/v1/models", "/healthz", "/metrics", "/admin/status"):
            async with there.session.get(there.url + path, headers={"range": ranges}) as answer:
                assert answer.status == 200 and "content-range" not in answer.headers
        for kind in ("multipart/form-data; boundary=" + "x" * 8000, "multipart/form-data", "text/plain",
                     "application/x-www-form-urlencoded", "application/json; charset=utf-16", "application/xml"):
            for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/admin/switch"):
                assert (await there.post(b"--x\r\n" * 2000, path, content_type=kind))[0] == 415, (kind, path)


# ---------------------------------------------------------------- metrics
async def test_no_caller_makes_a_series(tmp_path, monkeypatch):
    """Random model names, tags, paths, methods, keys and codes by the thousand: the page has the lines it had."""
    chance = random.Random(7)
    async with world(tmp_path, monkeypatch, engines=0, keys={"required": True},
                     route={"aliases": ["gpt-4o-*"]}) as there:
        _, key = KeyStore(there.ledger).create("a")
        there.gateway.keys.refresh()

        async def ask(word, valid):
            body = json.dumps({**CHAT, "model": f"gpt-4o-{word}" if valid else word}).encode()
            scope = {"type": "http", "http_version": "1.1", "raw_path": b"/x", "query_string": b"",
                     "method": chance.choice(("POST", "POST", "GET", word[:6].upper())),
                     "path": chance.choice(("/v1/chat/completions", "/v1/chat/completions", "/" + word)), "headers": [
                         (b"host", b"x"), (b"content-type", b"application/json"),
                         (b"authorization", b"Bearer " + (key if valid else word).encode()),
                         (b"x-breakeven-tags", f"team={word}".encode()), (b"user-agent", word.encode())]}
            messages = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def receive():
                if (message := next(messages, None)) is None:
                    await asyncio.Event().wait()
                return message

            async def send(message):
                pass

            await there.gateway.app(scope, receive, send)

        def series():
            return sorted(line.rpartition(b" ")[0] for line in there.gateway.metrics().splitlines() if line[:1] != b"#")

        def words():
            return f"{chance.getrandbits(64):x}"

        for number in range(60):
            await ask(words(), valid=number % 2 == 0)
        before, began = series(), time.monotonic()
        for number in range(NAMES):
            await ask(words(), valid=number % 50 == 0)
        print(f"{NAMES} random names in {time.monotonic() - began:.1f} s: {len(before)} series before and after")
        assert series() == before


# ---------------------------------------------------------------- money
class Free:
    """An upstream that says it used nothing, and writes a hundred words."""

    async def __call__(self, scope, receive, send):
        answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "gpt-4o", "usage": {
            "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, "choices": [{
                "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "word " * 100}}]}
        body = json.dumps(answer).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})


async def test_LiteLLM_37992_zero_is_a_number(tmp_path, monkeypatch):
    """A provider's explicit zero was taken for "unknown" and replaced by an estimate, which was then charged."""
    async with serve(Free()) as url, world(tmp_path, monkeypatch, engines=0, api={"url": url}) as there:
        status, headers, _ = await there.post(CHAT)
        assert status == 200 and float(headers["x-breakeven-cost-usd"]) == 0
        (row,) = await there.settled(1)
        assert row["usage_source"] == "upstream_final"
        assert (row["output_text"], row["api_nano"], row["baseline_nano"]) == (0, 0, 0)
