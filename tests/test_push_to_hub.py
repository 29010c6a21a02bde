"""Uploading a folder: what goes up, what is refused. The Hub is a folder here."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from tiny_data import tiny_model_and_processor

from clipfsar.checkpoints.model_card import write_model_card
from clipfsar.checkpoints.push_to_hub import missing_files, push_folder
from clipfsar.cli import main as clipfsar
from clipfsar.training.arguments import parse_arguments
from pipeline_clipfsar import save_with_pipeline

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "best"
    save_with_pipeline(*tiny_model_and_processor(), folder)
    write_model_card(folder, parse_arguments(["--dataset", "someone/actions"]), None, [], num_base_classes=3)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Folder that uploads land in, and the requests made."""
    requests = []

    def create_repo(self, repo_id, **options):
        requests.append(("create_repo", repo_id, options))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def create_branch(self, repo_id, **options):
        requests.append(("create_branch", repo_id, options))

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns, **options):
        requests.append(("upload_folder", repo_id, options))
        names = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, ignore_patterns=ignore_patterns):
            (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder_path) / name, tmp_path / "hub" / name)
        return "https://hub/commit"

    for function in (create_repo, create_branch, upload_folder):
        monkeypatch.setattr(HfApi, function.__name__, function)
    return SimpleNamespace(folder=tmp_path / "hub", requests=requests)


def test_a_folder_goes_up_complete_and_without_rubbish(folder, hub):
    for rubbish in (
        *("__pycache__/modeling_clipfsar.pyc", "old.pyc", ".DS_Store", "inner/.hidden", ".model.safetensors.partial"),
        *(
            "a.partial",
            "a.tmp",
            "state/progress.json",
            "optimizer.pt",
            "optimizer_1.safetensors",
            "random_states_0.bin",
        ),
    ):
        (folder / rubbish).parent.mkdir(exist_ok=True)
        (folder / rubbish).write_text("rubbish")
    assert push_folder(folder, "actions") == "https://hub/commit"
    assert {path.relative_to(hub.folder).as_posix() for path in hub.folder.rglob("*")} == {
        *(path.name for path in ROOT.glob("*_clipfsar.py")),
        *("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
        "README.md",
    }
    assert 'model="me/actions"' in (hub.folder / "README.md").read_text()
    assert hub.requests == [
        ("create_repo", "actions", {"private": True, "exist_ok": True}),
        ("upload_folder", "me/actions", {"revision": None, "commit_message": "Upload CLIP-FSAR model"}),
    ]


def test_a_public_repository_and_a_branch_are_made_on_request(folder, hub):
    push_folder(folder, "actions", private=False, revision="v2", commit_message="Second try")
    assert hub.requests == [
        ("create_repo", "actions", {"private": False, "exist_ok": True}),
        ("create_branch", "me/actions", {"branch": "v2", "exist_ok": True}),
        ("upload_folder", "me/actions", {"revision": "v2", "commit_message": "Second try"}),
    ]


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "README.md", "tokenizer.json", "support_set_clipfsar.py"]
)
def test_an_incomplete_folder_is_refused_before_anything_goes_up(folder, hub, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"is not complete, .*{name}.* missing: nothing was uploaded"):
        push_folder(folder, "actions")
    assert hub.requests == []


def test_the_folder_of_a_run_leads_to_its_best_model(folder, hub):
    with pytest.raises(ValueError, match=r"nothing was uploaded. Did you mean .*best\?"):
        push_folder(folder.parent, "actions")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        push_folder(folder / "nothing", "actions")


def test_weights_in_several_files_are_complete(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert missing_files(folder) == []


def test_the_program_prints_the_address(folder, hub, capsys):
    assert clipfsar(["push", "--folder", str(folder), "--repo_id", "actions"]) == 0
    assert capsys.readouterr().out == "https://hub/commit\n"
    assert clipfsar(["push", "--folder", "nothing", "--repo_id", "actions"]) == 1
    assert capsys.readouterr().err.startswith("error: --folder nothing does not exist. Give the folder of a model")
