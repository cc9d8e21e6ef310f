import traceback

import pytest
from torch.utils.data import DataLoader, Dataset

from kdpl.errors import DataError, reason

SENTENCE = "image cat.png cannot be read (truncated: 3 bytes): replace or remove the file."


class Failing(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise OSError("truncated: 3 bytes")
        except OSError as error:
            raise DataError(SENTENCE) from error


def test_error_in_a_worker_stays_one_sentence_and_notes_the_workers_traceback():
    with pytest.raises(DataError) as raised:
        next(iter(DataLoader(Failing(), num_workers=1)))
    assert str(raised.value) == SENTENCE
    printed = "".join(traceback.format_exception(raised.value))
    assert "in __getitem__" in printed
    assert "OSError: truncated: 3 bytes" in printed


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError("file v1.2.pt is cut off. Fetch it again.\nTrace"), "file v1.2.pt is cut off"),
        (EOFError(), "EOFError"),
    ],
)
def test_of_another_librarys_error_the_first_sentence_is_quoted(error, sentence):
    assert reason(error) == sentence
