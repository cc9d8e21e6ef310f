import pytest
from planted.faults import ROOT, read_faults

FAULTS = read_faults()


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_can_be_planted_and_its_tests_exist(fault):
    source = (ROOT / "kdpl" / fault.file).read_text(encoding="utf-8")
    assert fault.planted(source) != source
    assert not [path for path in (*fault.tests, *fault.slow) if not (ROOT / path).exists()]
