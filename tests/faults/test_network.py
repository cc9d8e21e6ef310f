import socket

import pytest
from benchmark_tree import make_tree
from huggingface_hub import constants, hf_hub_download
from runs import soon

import kdpl.runtime.network
from kdpl.__main__ import main
from kdpl.runtime.network import HubUnreachableError, hub_or_cache, require_hub


@pytest.fixture
def nobody(monkeypatch):
    """An address in the place of the hub's at which nobody answers; gives it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(kdpl.runtime.network, "_PAUSE_SECONDS", 0.05)
    return address


def test_a_download_without_a_network_is_one_sentence_soon(nobody, tmp_path, capfd):
    with soon():
        assert main(["data", "download", "dtd", f"--root={tmp_path / 'root'}"]) == 1
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith(f"error: dataset dtd cannot be downloaded from zhengli97/prompt_learning_dataset ({nobody} ")
    assert "does not answer: " in err
    assert err.endswith("check the network and start again, what has been downloaded is kept.\n")
    assert err.count("\n") == 1
    assert not (tmp_path / "root").exists()
    # what is there needs no network
    make_tree("dtd", tmp_path / "root")
    assert main(["data", "download", "dtd", f"--root={tmp_path / 'root'}"]) == 0


def test_weights_that_are_not_there_without_a_network_are_one_sentence_soon(nobody, tmp_path, capfd):
    from kdpl.clip.loading import ClipConfig, load_image_clip
    from kdpl.errors import WeightsError

    with soon(), pytest.raises(WeightsError) as error:
        load_image_clip(ClipConfig("ViT-B-32-quickgelu", "metaclip_400m"))
    assert f"cannot fetch the weights 'metaclip_400m' of ViT-B-32-quickgelu ({nobody} does not answer: " in str(
        error.value
    )
    assert not capfd.readouterr().err


@pytest.mark.usefixtures("nobody")
def test_what_was_fetched_before_is_had_without_a_network(tmp_path):
    snapshot = tmp_path / "models--me--clip" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "weights.bin").write_bytes(b"weights")
    (tmp_path / "models--me--clip" / "refs").mkdir()
    (tmp_path / "models--me--clip" / "refs" / "main").write_text("a" * 40)
    with soon(), hub_or_cache():
        path = hf_hub_download("me/clip", "weights.bin", cache_dir=tmp_path)
    assert path == str(snapshot / "weights.bin")
    assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_answers_at_the_second_time_is_there(nobody, monkeypatch):
    answers = iter([ConnectionError("reset"), None])

    def ask():
        answer = next(answers)
        if answer:
            raise answer

    monkeypatch.setattr(kdpl.runtime.network, "_ask", ask)
    require_hub()
    with pytest.raises(StopIteration):
        next(answers)


def test_a_hub_that_is_switched_off_is_not_asked(nobody, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE is set"):
        require_hub()
