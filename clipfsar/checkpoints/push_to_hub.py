"""Uploads the folder of a model, made by train/train.py or a converter, to the Hugging Face Hub.

    clipfsar push --folder runs/mine/best --repo_id me/clip-fsar-mine
    clipfsar push --folder runs/mine/best --repo_id me/clip-fsar-mine --private false --revision v2

Log in before with `hf auth login`. A new repository is private unless asked otherwise. What goes up is weights,
processor, code, settings and model card: nothing but the folder's own files, after a check that all of them are there.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers.dynamic_module_utils import get_relative_imports

from clipfsar.checkpoints.model_card import MODEL_PLACEHOLDER
from clipfsar.options import parse_options

# What may lie about in a folder that was used: caches, files half written, states of a training.
_NOT_UPLOADED = ["__pycache__/**", "*.pyc", ".*", "**/.*", "*.partial", "*.tmp", "state/**", "optimizer*", "*.bin"]


@dataclass
class Arguments:
    folder: str = field(metadata={"help": "Folder of a model, e.g. runs/mine/best."})
    repo_id: str = field(metadata={"help": "Repository on the Hub, USER/NAME; made if need be."})
    private: bool = field(default=True, metadata={"help": "Make a new repository private; an old one stays as it is."})
    revision: str | None = field(default=None, metadata={"help": "Branch to upload to; made if need be."})
    commit_message: str = field(default="Upload CLIP-FSAR model", metadata={"help": "Message of the commit."})


def missing_files(folder: Path) -> list[str]:
    """Files that `pipeline` and the Hub need and that are not in the folder."""
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    references = [*config.get("auto_map", {}).values()]
    references += [pipeline["impl"] for pipeline in config.get("custom_pipelines", {}).values()]
    to_read, code = {f"{reference.split('--')[-1].split('.')[0]}.py" for reference in references}, set()
    while to_read:
        code |= to_read
        there = [folder / name for name in to_read if (folder / name).is_file()]
        to_read = {f"{module}.py" for file in there for module in get_relative_imports(file)} - code
    needed = ["config.json", "processor_config.json", "tokenizer.json", "README.md", *sorted(code)]
    missing = [name for name in needed if not (folder / name).is_file()]
    return missing if any(folder.glob("model*.safetensors")) else [*missing, "model.safetensors"]


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool = True,
    revision: str | None = None,
    commit_message: str = "Upload CLIP-FSAR model",
) -> str:
    """Uploads a complete model folder and returns the commit's address; its card then names the repository.

    Raises:
        FileNotFoundError: Where there is no folder.
        ValueError: When something in it is missing; the message lists what.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give that of a model, e.g. runs/mine/best.")
    missing = missing_files(folder)
    if missing:
        hint = f" Did you mean {folder / 'best'}?" if (folder / "best" / "config.json").is_file() else ""
        raise ValueError(f"{folder} is not complete, {', '.join(missing)} missing: nothing was uploaded.{hint}")
    api = HfApi()
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    card = folder / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace(MODEL_PLACEHOLDER, repo_id), encoding="utf-8")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        commit_message=commit_message,
        ignore_patterns=_NOT_UPLOADED,
    )
    return str(commit)


if __name__ == "__main__":
    arguments = parse_options(Arguments, __doc__)
    try:
        print(push_folder(**vars(arguments)))
    except (ValueError, OSError, HFValidationError, HfHubHTTPError) as error:
        sys.exit(f"error: {error}")
