"""A moment of the soak: real processes, random faults, no exception, and books that balance."""

from rich.progress import Progress

from tests.bench.soak import soak


async def test_ten_seconds_of_faults_leave_no_exception_and_true_books(tmp_path):
    figures, problems = await soak(0.16, 5, tmp_path, Progress(disable=True))
    assert (problems, figures["exceptions"]) == ([], 0)
    assert figures["requests"] > 50
