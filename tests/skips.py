"""A pytest plugin (`-p tests.skips`): a run in which a test was skipped fails, unless the reason is allowed for here.

A skipped test proves nothing and looks like a passed one. Loaded by `make test` and `make test-vllm`, not by a bare
`pytest`, where a developer may leave out what he pleases.
"""

import pytest

# Beginnings of reasons that may skip a test on a machine where everything is as it should be. None so far.
ALLOWED: tuple[str, ...] = ()


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    words = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return words.removeprefix("Skipped: ")


def unexpected(config: pytest.Config) -> list[pytest.TestReport]:
    skipped = config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    return [report for report in skipped if not reason_of(report).startswith(ALLOWED)]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and unexpected(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    for report in unexpected(config):
        terminalreporter.line(f"SKIP NOT ALLOWED {report.nodeid}: {reason_of(report)}", red=True)
