"""`clipfsar push`: uploads a model's folder to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from transformers.dynamic_module_utils import get_relative_imports

from clipfsar.checkpoints.arguments import PushArguments
from clipfsar.checkpoints.converted_card import state_origin
from clipfsar.checkpoints.model_card import MODEL_PLACEHOLDER
from clipfsar.json_files import read_json
from paths_clipfsar import write_text

# Files that a used folder may also hold: caches, half-written files, training states.
_NOT_UPLOADED = ["__pycache__/**", "*.pyc", "**/.*", "*.partial", "*.tmp", "state/**", "optimizer*", "*.bin"]
_EVAL_RESULTS = ".eval_results"  # the Hub reads results from this folder


def _not_uploaded(folder: Path) -> list[str]:
    """Patterns of files that stay here: those of `_NOT_UPLOADED` and hidden ones, without `.eval_results`."""
    hidden = [path.name for path in folder.iterdir() if path.name[0] == "." and path.name != _EVAL_RESULTS]
    return [*_NOT_UPLOADED, *hidden, *(f"{name}/**" for name in hidden)]


def missing_files(folder: Path) -> list[str]:
    """Files that `pipeline` or the Hub needs but the folder does not hold."""
    is_there = (folder / "config.json").is_file()
    config = read_json(folder / "config.json", "put back a copy of it, or save the model again") if is_there else {}
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
    license: str | None = None,
    source: str | None = None,
) -> str:
    """Uploads a complete model folder and returns the commit's URL. The model card then names the repository.

    Args:
        license, source: For converted weights: their licence, and an address or citation of the original ones. Needed
            once; the folder keeps them.

    Raises:
        FileNotFoundError: When the folder does not exist.
        ValueError: When files are missing (the message lists them), or licence and source of converted weights.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the folder of a model, e.g. runs/mine/best.")
    missing = missing_files(folder)
    if missing:
        hint = f" Did you mean {folder / 'best'}?" if (folder / "best" / "config.json").is_file() else ""
        raise ValueError(f"{folder} is not complete, {', '.join(missing)} missing: nothing was uploaded.{hint}")
    state_origin(folder, license, source)
    api = HfApi()
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    card = folder / "README.md"
    write_text(card, card.read_text(encoding="utf-8").replace(MODEL_PLACEHOLDER, repo_id))
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        commit_message=commit_message,
        ignore_patterns=_not_uploaded(folder),
    )
    return str(commit)


def main(arguments: PushArguments):
    print(push_folder(**vars(arguments)))


__all__ = ["main", "missing_files", "push_folder"]
