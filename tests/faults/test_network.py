import socket

import pytest
from benchmark_tree import make_tree
from huggingface_hub import constants, hf_hub_download
from runs import error_line
from world import refused

from kdpl.__main__ import main
from kdpl.clip.loading import ClipConfig, load_image_clip
from kdpl.errors import WeightsError
from kdpl.runtime.network import HubUnreachableError, hub_or_cache, require_hub


@pytest.fixture
def unreachable(monkeypatch):
    """An address at which nothing answers, instead of the hub's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    return address


def test_a_download_without_network_is_one_sentence(unreachable, tmp_path, capsys):
    pytest.importorskip("kdpl.benchmark")
    assert main(["data", "download", "dtd", f"--root={tmp_path / 'root'}"]) == 1
    error_line(capsys, "dtd cannot be downloaded from", unreachable, "check the network")
    assert not (tmp_path / "root").exists()
    # what is there needs no network
    make_tree("dtd", tmp_path / "root")
    assert main(["data", "download", "dtd", f"--root={tmp_path / 'root'}"]) == 0


def test_missing_weights_without_network_are_one_sentence(unreachable, capfd):
    origin = "https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K;"
    with refused(WeightsError, f"{unreachable}.* {origin}.*clip.quick_gelu false"):
        load_image_clip(ClipConfig("ViT-B-32", "laion2b_s34b_b79k"))
    assert not capfd.readouterr().err


@pytest.mark.usefixtures("unreachable")
def test_what_was_fetched_before_is_used_without_network(tmp_path):
    snapshot = tmp_path / "models--me--clip" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "weights.bin").write_bytes(b"weights")
    (tmp_path / "models--me--clip" / "refs").mkdir()
    (tmp_path / "models--me--clip" / "refs" / "main").write_text("a" * 40)
    with hub_or_cache():
        path = hf_hub_download("me/clip", "weights.bin", cache_dir=tmp_path)
    assert path == str(snapshot / "weights.bin")
    assert constants.HF_HUB_OFFLINE is False


def test_the_hub_is_not_asked_when_it_is_switched_off(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE is set"):
        require_hub()
