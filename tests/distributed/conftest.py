import fits
import pytest
import world


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    """What stage 1 leaves for the digits; no test changes it."""
    folder = tmp_path_factory.mktemp("teacher")
    world.write_teacher(folder, class_names=fits.DIGITS, num_base=None)
    return folder
