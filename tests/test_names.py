"""Names on the command line: missing ones are named at once, a training run stands for its best model."""

from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from clipfsar.cli import main
from clipfsar.inference.load_model import usable_device
from clipfsar.names import check_device, check_source, find_model


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub without a network; its value is what asking for a repository raises, if anything."""
    asked = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)

    def answer(error=None):
        def repo_info(self, name, repo_type=None, revision=None, timeout=None):
            asked.append((name, repo_type, timeout))
            if error is not None:
                raise error

        monkeypatch.setattr(HfApi, "repo_info", repo_info)
        return asked

    return answer


def not_found():
    return RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None, status_code=404))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (not_found(), "the Hub has no such model that you may see"),
        (
            ConnectionError("no network"),
            r"the Hub cannot be reached \(ConnectionError\); it is not in the cache",
        ),
        (TimeoutError(), r"the Hub cannot be reached \(TimeoutError\)"),
    ],
)
def test_a_name_that_is_nothing_is_an_error_after_one_question(hub, error, reason):
    asked = hub(error)
    with pytest.raises(FileNotFoundError, match=rf"^--model nope: there is no such folder, and {reason}"):
        find_model("model", "nope")
    assert asked == [("nope", "model", 5.0)]


def test_what_the_hub_has_or_the_cache_holds_passes(hub, tmp_path):
    asked = hub()
    check_source("model", "me/model")
    check_source("dataset", "me/clips", "dataset")
    assert [name for name, _, _ in asked] == ["me/model", "me/clips"]
    hub(not_found())
    (tmp_path / "cache" / "models--me--kept").mkdir(parents=True)
    (tmp_path / "datasets" / "me___kept").mkdir(parents=True)
    check_source("model", "me/kept")
    check_source("dataset", "me/kept", "dataset")
    with pytest.raises(FileNotFoundError, match="the Hub has no such dataset"):
        check_source("dataset", "me/gone", "dataset")
    assert [name for name, _, _ in asked] == ["me/model", "me/clips", "me/gone"]


def test_a_name_the_hub_cannot_have_is_not_asked_for(hub):
    asked = hub(not_found())
    with pytest.raises(FileNotFoundError, match=r"--model my model: .* it is not a valid Hub id \(OWNER/NAME\)"):
        check_source("model", "my model")
    assert asked == []


def test_every_command_names_the_option_of_a_name_that_is_nothing(hub, tmp_path, capsys):
    asked = hub(ConnectionError())
    (tmp_path / "data").mkdir()
    (tmp_path / "x.mp4").touch()
    for command in (
        ["train", "--dataset", "data", "--model", "nope"],
        ["train", "--dataset", "nope"],
        ["evaluate", "--dataset", "data", "--model", "nope"],
        ["evaluate", "--model", "nope", "--dataset", "nope"],
        ["predict", "--model", "nope", "--labels", "a, b", "--query", "x.mp4"],
        ["predict", "--model", "me/m", "--support_set", "nope", "--query", "x.mp4"],
        ["export", "--model", "nope", "--output_dir", "out"],
        ["convert", "--model", "nope", "--checkpoint", "x.pyth"],
        ["prepare", "--source", "nope", "--output_dir", "out"],
        ["demo-page", "--model", "nope"],
    ):
        assert main(command) == 1, command
        option = command[command.index("nope") - 1]
        if command[:3] == ["evaluate", "--model", "nope"]:
            option = "--dataset"
        assert capsys.readouterr().err.startswith(f"error: {option} nope: there is no such folder"), command
    assert len(asked) == 10


def test_a_training_run_stands_for_its_best_model(tmp_path, capsys):
    best = tmp_path / "best"
    best.mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no model: it has neither a config\.json nor the folder 'best'"):
        find_model("model", str(tmp_path))
    (best / "config.json").write_text("{}")
    assert find_model("model", str(tmp_path)) == str(best)
    assert f"is a training run: using its best model, {best}." in capsys.readouterr().err
    assert find_model("model", str(best)) == str(best)
    assert capsys.readouterr().err == ""


def test_a_training_run_without_a_best_model_suggests_its_last(tmp_path, capsys):
    last = tmp_path / "last"
    last.mkdir()
    (last / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"run without a best model: give its last one, --model {last}"):
        find_model("model", str(tmp_path))


@pytest.mark.parametrize("name", [None, "cpu", "cpu:0", "cuda", "cuda:1", "mps", "mps:0", "xpu:12"])
def test_names_of_devices_pass(name):
    check_device(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        *(("cpu:3", "only one cpu. Give --device cpu"), ("mps:1", "only one mps"), ("cpu:", "choose from cpu")),
        *(("gpu", "did you mean cuda"), ("GPU:0", "did you mean cuda"), ("x", "choose from cpu")),
    ],
)
def test_what_is_no_device_is_named(name, hint, capsys):
    with pytest.raises(ValueError, match=f"--device {name} is not a device: .*{hint}"):
        check_device(name)
    assert main(["predict", "--model", "m", "--labels", "a, b", "--query", "x.mp4", "--device", name]) == 2
    assert capsys.readouterr().err.startswith(f"error: --device {name} is not a device")


@pytest.mark.parametrize("name", ["mps", "cuda", "cuda:0", "xpu", "npu"])
def test_a_device_that_this_machine_lacks_is_named_in_one_sentence(name, monkeypatch):
    kind = name.partition(":")[0]
    if hasattr(torch, kind):
        monkeypatch.setattr(getattr(torch, kind), "is_available", lambda: False)
    message = f"^--device {name} cannot be used: this machine, or this PyTorch, has no {kind}. Leave the option out"
    with pytest.raises(ValueError, match=message):
        usable_device(name)
    assert usable_device("cpu") == "cpu"
    assert usable_device(None) is None


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"config\.json is a file: give a model's folder"):
        find_model("model", str(tmp_path / "config.json"))
