from benchmark_tree import image

from kdpl.data.survey.found import find
from kdpl.data.survey.images import inspect_images


def test_a_look_tells_size_digest_and_fault_in_order_for_any_number_of_workers(tmp_path):
    image(tmp_path / "a/1.png")
    image(tmp_path / "a/3.png", shade=100)
    (tmp_path / "a/2.png").write_bytes(b"no image")
    (tmp_path / "a/4.png").write_bytes((tmp_path / "a/1.png").read_bytes())
    alone, helped = (inspect_images(find(tmp_path), workers) for workers in (1, 2))
    assert alone == helped
    assert [each.size for each in alone] == [(12, 10), None, (12, 10), (12, 10)]
    assert alone[0].digest == alone[3].digest != alone[2].digest
    assert "2.png cannot be read" in alone[1].fault
    assert [each.fault is None for each in alone] == [True, False, True, True]
