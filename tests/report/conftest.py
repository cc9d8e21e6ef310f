import pytest
from report_pages import make, put_together


@pytest.fixture(scope="session")
def complete(built_once, teacher_run, student_run):
    """A run with its report, and the linear probes that the report fitted; no test changes it."""

    def build(folder):
        make(put_together(folder / "my run", teacher_run, student_run))

    return built_once("report", build) / "my run"
