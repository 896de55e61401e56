"""The image: what its recipe promises, and that a running gateway writes nowhere but to its ledger's folder."""

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import aiohttp
import yaml

from proxy.demo.api import SimulatedApi
from proxy.demo.serving import serve
from tests.support.patience import PATIENCE_S
from tests.support.world import GPT, configuration

ROOT = Path(__file__).resolve().parents[2]
# Python tells an audit hook of every file that is opened, renamed or removed, whoever does it; SQLite's own files lie
# beside what `sqlite3.connect` names.
WATCHED = """
import os, sys
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
def hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & WRITES:
        os.write(2, b"WROTE %s\\n" % os.fsencode(args[0]))
    elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"):
        os.write(2, b"WROTE %s\\n" % os.fsencode(str(args[0])))
    elif event == "sqlite3.connect":
        os.write(2, b"WROTE %s\\n" % os.fsencode(str(args[0])))
    elif event in ("subprocess.Popen", "os.exec", "os.fork", "os.system", "os.posix_spawn"):
        os.write(2, b"RAN %s\\n" % event.encode())
sys.addaudithook(hook)
sys.argv = ["breakeven", *sys.argv[1:]]
from proxy.cli import main
main()
"""


def test_the_recipe_keeps_its_promises():
    text = (ROOT / "Dockerfile").read_text()
    build, final = text.split("\nFROM ", 2)[1:]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE), "a number: what runs it can see that it is not root"
    assert "--require-hashes" in build and "--only-binary :all:" in build
    assert "*.pth" in build and "pip uninstall --yes setuptools pip" in build
    assert not re.search(r"\b(?:apt-get|curl|wget|ADD)\b", text), "nothing is fetched but by hash"
    assert not re.search(r"^(?:ARG|ENV).*(?:KEY|TOKEN|SECRET|PASSWORD)", text, re.MULTILINE)
    assert re.findall(r"^COPY (.*)$", final, re.MULTILINE) == ["--from=build /opt/breakeven /opt/breakeven"]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored and not {"!.git", "!data", "!config"} & set(ignored)
    # The package itself carries no file that Python would run by itself.
    assert not [path for path in (ROOT / "proxy").rglob("*") if path.suffix in (".pth", ".so", ".egg-link")]
    assert not list((ROOT / "proxy").rglob("sitecustomize.py"))


async def test_a_gateway_writes_to_its_ledgers_folder_alone(tmp_path):
    """So the root may be read-only, and everything else mounted so: neither caches nor temporary files."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with serve(SimulatedApi(GPT)) as api, aiohttp.ClientSession() as session:
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(configuration(f"sqlite:///{data}/ledger.db", [], api)))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WATCHED, "serve", "--config", str(config), "--port", "0", cwd=elsewhere,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={
                "PATH": os.environ["PATH"], "HOME": str(tmp_path / "none"), "SIM_API_KEY": "sk-sim",
                "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"})
        try:
            url = (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode().split()[4]
            for _ in range(3):
                async with session.post(url + "/v1/chat/completions", json={
                        "model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}) as answer:
                    assert answer.status == 200, await answer.read()
            process.send_signal(signal.SIGTERM)
            _, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
    told = errors.decode().splitlines()
    wrote = {line.removeprefix("WROTE ") for line in told if line.startswith("WROTE ")}
    assert process.returncode == 0 and any("ledger.db" in path for path in wrote), told
    assert {path for path in wrote if str(data) not in path} <= {"/dev/null", ":memory:"}
    assert not [line for line in told if line.startswith("RAN ")], "a gateway starts no process"
    assert list(elsewhere.iterdir()) == [] and not (tmp_path / "none").exists()
    logged = [json.loads(line) for line in told if line.startswith("{")]
    assert not [line for line in logged if line["level"] == "error"], logged
