import pytest
from planted.faults import ROOT, read_faults


@pytest.mark.parametrize("fault", read_faults(), ids=lambda fault: fault.name)
def test_a_fault_can_be_planted_and_its_tests_exist(fault):
    source = (ROOT / "kdpl" / fault.file).read_text(encoding="utf-8")
    assert fault.planted(source) != source
    assert not [path for path in (*fault.tests, *fault.slow) if not (ROOT / path).exists()]
