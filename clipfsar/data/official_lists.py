"""Fetches the official split lists and class names of the paper's five benchmarks, checks them and keeps them.

They are data files of https://github.com/alibaba-mmai-research/CLIP-FSAR, folder `configs/projects/CLIPFSAR`.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from clipfsar.data.arguments import PrepareArguments
from download_clipfsar import download
from limits_clipfsar import UnreadableError
from paths_clipfsar import local_path, replace_file

COMMIT = "30cf0a8cf5287a56a9f37bfceb28e82be776fc5d"
_FOLDER = "configs/projects/CLIPFSAR"
ADDRESS = f"https://raw.githubusercontent.com/alibaba-mmai-research/CLIP-FSAR/{COMMIT}/{_FOLDER}"
PAGE = f"https://github.com/alibaba-mmai-research/CLIP-FSAR/tree/{COMMIT}/{_FOLDER}"

# For each benchmark: the YAML file with the names of base and test classes, and the SHA-256 of every file.
NAMES = {
    "ssv2_full": "CLIPFSAR_SSv2_Full_1shot_v1.yaml",
    "ssv2_small": "CLIPFSAR_SSv2_Small_1shot_v1.yaml",
    "kinetics100": "CLIPFSAR_K100_1shot_v1.yaml",
    "ucf101": "CLIPFSAR_UCF101_1shot_v1.yaml",
    "hmdb51": "CLIPFSAR_HMDB51_1shot_v1.yaml",
}
SHA256 = {
    "ssv2_full": {
        "train_few_shot.txt": "886fdd2b9215328efaee7e73ae2ea8f5b3e99fd3732679481652bad1506df5c0",
        "val_few_shot.txt": "b9884e9e716fbb9a902121d797c0a43ec04517085eb6b36a2804e037db63d6eb",
        "test_few_shot.txt": "83a1ac8e7c6f720c55dced1dc9deae1c11fb8271f8a3bb1f0952aed068646a1e",
        NAMES["ssv2_full"]: "2ff49a7404003dbd5628fb3a76338cd56125876c25c40f0f2f5d2b7878ac597f",
    },
    "ssv2_small": {
        "train_few_shot.txt": "724c01ee6595639d0829874e503936596de6564f7bf4293cf332b0f7891e0696",
        "val_few_shot.txt": "7b0162b14e42186122677eba5679b7b133017c46fbbfa8638682675aad9f4c0a",
        "test_few_shot.txt": "e8b4b69302bd85522fffdaebedd212557a8088e76df6dfcc76a82ac953fe739a",
        NAMES["ssv2_small"]: "7b53797ed9d862c4edf7dcde7be9f0b94c3565ad2fb24b4b8b0bbc1cc931526c",
    },
    "kinetics100": {
        "train_few_shot.txt": "92cac54f79940ab50bb296c48048260238ce82349ad87424994c9839c24a40c6",
        "val_few_shot.txt": "635b5e78f0031f1823379675cde8f1ffe7bedb1025a817df214a03b0c1674932",
        "test_few_shot.txt": "c43ada5179a8c402405849f1bab0df7cfa5d2e103fd943e5672f90ba188add53",
        NAMES["kinetics100"]: "88569846dcbb859c787d9329469f27b6b91943363e2981ffec5a01e9f6b657d7",
    },
    "ucf101": {
        "train_few_shot.txt": "faeb4941e197fc6cefb603f7c277dffa854a5dac74a3ad11ce6955441751c3d5",
        "val_few_shot.txt": "aec8242d1f0af0da107eac5fd7be699f639bcb04078dcbb445fbe7bc8500acbd",
        "test_few_shot.txt": "160ae01885fb33b435e6312234e722f56c1016f2fe34a63c364c29ea4556c957",
        NAMES["ucf101"]: "6ba75d79319edf9c3d1c3b475783dfdcfcf174f158956ae479b7bf51369b686e",
    },
    "hmdb51": {
        "train_few_shot.txt": "59a5a0fe9c831bf9b46f05082a25828196a1b44ce4a2ab2dc64b17dead845069",
        "val_few_shot.txt": "33703ba18c1f036607b2c4872b1bb1c8e0290dcaaf9671264f7ec2ed1cf7de9a",
        "test_few_shot.txt": "ee8fa2c56e3ace7dcb2b025ea5c7ebf6d2c56f2f114c0bd3a992a894ace9b997",
        NAMES["hmdb51"]: "d5058db14752ddfc5468262624d7eb89c2405e3cf43025e191a4182c31d541a9",
    },
}


def lists_folder(benchmark: str) -> Path:
    """Where the files of a benchmark are kept: in the cache of Hugging Face (`HF_HOME`)."""
    home = local_path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    return home / "clipfsar" / "official_lists" / COMMIT / benchmark


def official_lists(benchmark: str) -> Path:
    """The folder of a benchmark's lists and YAML file. Downloads the files that are missing or damaged there.

    Raises:
        ConnectionError: When a file cannot be downloaded, or `HF_HUB_OFFLINE` is set; the message says which files to
            put where.
        ValueError: When a downloaded file is not the one of that commit.
    """
    folder = lists_folder(benchmark)
    for name, digest in SHA256[benchmark].items():
        path = folder / name
        if path.is_file() and _digest(path.read_bytes()) == digest:
            continue
        content = _fetch(benchmark, name)
        if _digest(content) != digest:
            raise ValueError(
                f"{ADDRESS}/{benchmark}/{name} is not the file of the official program: its SHA-256 is "
                f"{_digest(content)}, but {digest} is expected. A proxy may have answered in its place. "
                f"{_by_hand(benchmark)}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as partial:
            partial.write_bytes(content)
    return folder


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _fetch(benchmark: str, name: str) -> bytes:
    address = f"{ADDRESS}/{benchmark}/{name}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        reason = "HF_HUB_OFFLINE is set"
    else:
        try:
            return download(address)
        except (OSError, UnreadableError) as error:  # urllib's errors are OSErrors
            reason = f"{address}: {' '.join(str(error).split()) or type(error).__name__}"
    raise ConnectionError(
        f"The official lists of {benchmark} cannot be downloaded ({reason}). {_by_hand(benchmark)}"
    ) from None


def _by_hand(benchmark: str) -> str:
    return (
        f"Put {', '.join(SHA256[benchmark])} of {PAGE}/{benchmark} into {lists_folder(benchmark)}, or name a folder "
        "of your own with --official_splits and the YAML file with --class_names_file."
    )


def with_official_lists(arguments: PrepareArguments) -> PrepareArguments:
    """The same options with downloaded lists and class names, if only a benchmark and the videos are given."""
    if arguments.source is not None or arguments.official_splits is not None:
        return arguments
    assert arguments.benchmark is not None  # the options were checked
    folder = official_lists(arguments.benchmark)
    names = arguments.class_names_file or str(folder / NAMES[arguments.benchmark])
    return replace(arguments, official_splits=str(folder), class_names_file=names)


__all__ = ["ADDRESS", "COMMIT", "NAMES", "SHA256", "lists_folder", "official_lists", "with_official_lists"]
