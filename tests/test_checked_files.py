"""Files are whole or not there, and a single flipped bit of any of them is found."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from clipfsar import checked_files
from clipfsar.checked_files import (
    CHECKSUMS,
    DamagedFileError,
    check_files,
    file_for_torch,
    listed_files,
    load_tensors,
    save_rows,
    save_tensors,
    write_checksums,
)
from clipfsar.json_files import read_json
from paths_clipfsar import replace_file

TENSORS = {"embeds": torch.arange(60, dtype=torch.float32).reshape(3, 4, 5), "rows": torch.tensor([3, 1, 2])}


def flip(path, position: int, bit: int):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_tensors_come_back_and_others_can_read_them(tmp_path):
    save_tensors(TENSORS, tmp_path / "x.safetensors")
    for tensors in (load_tensors(tmp_path / "x.safetensors", ""), load_file(tmp_path / "x.safetensors")):
        assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
            name: tensor.tolist() for name, tensor in TENSORS.items()
        }


def test_a_full_disk_is_an_error_with_the_name_of_the_file_of_tensors(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("support_set_files_clipfsar.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert (caught.value.errno, caught.value.filename) == (28, str(tmp_path / "a.safetensors"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("save", [torch.save, torch.export.save])
def test_a_full_disk_does_not_end_the_program_from_within_torch(save):
    graph = torch.export.export(torch.nn.Identity(), (torch.zeros(2),))
    with pytest.raises(OSError, match="No space left on device") as caught, file_for_torch(Path("/dev/full")) as file:
        save(graph if save is torch.export.save else {"a": torch.zeros(9)}, file)
    assert str(caught.value.filename) == "/dev/full"


def test_a_file_of_torch_is_whole(tmp_path, caplog):
    with file_for_torch(tmp_path / "a.pt2") as file:
        torch.export.save(torch.export.export(torch.nn.Identity(), (torch.zeros(2),)), file)
    assert torch.export.load(tmp_path / "a.pt2").module()(torch.ones(2)).tolist() == [1, 1]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize("size", [1, 3, 9], ids="{} rows in a part".format)
def test_rows_in_parts_give_the_file_of_the_whole_tensor(tmp_path, monkeypatch, size):
    monkeypatch.setattr(checked_files, "_BYTES_AT_ONCE", 7)
    embeds = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    others = {"digests": torch.arange(112, dtype=torch.uint8).reshape(7, 16)}
    order = torch.tensor([3, 0, 6, 1, 2, 5, 4])
    parts = ((rows.tolist(), embeds[rows]) for rows in order.split(size))
    save_rows("embeds", torch.empty(7, 2, 3, device="meta"), parts, others, tmp_path / "parts.safetensors")
    save_tensors({"embeds": embeds} | others, tmp_path / "whole.safetensors")
    found, expected = (load_tensors(tmp_path / f"{name}.safetensors", "") for name in ("parts", "whole"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_any_flipped_bit_of_a_file_of_tensors_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(TENSORS, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for position in range(len(whole)):
        flip(path, position, int(rng.integers(8)))
        with pytest.raises(DamagedFileError, match=r"x\.safetensors is damaged .*: throw it away\."):
            load_tensors(path, "throw it away")
        path.write_bytes(whole)


@pytest.mark.parametrize("size", [0, 1, 7, 100])
def test_a_file_of_tensors_that_was_cut_off_is_found(size, tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(TENSORS, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedFileError):
        load_tensors(path, "throw it away")


def test_a_file_without_checksum_passes_only_where_none_is_expected(tmp_path):
    from safetensors.torch import save_file

    save_file(TENSORS, tmp_path / "old.safetensors")
    assert set(load_tensors(tmp_path / "old.safetensors", "", has_checksum=False)) == set(TENSORS)
    with pytest.raises(DamagedFileError, match="checksum"):
        load_tensors(tmp_path / "old.safetensors", "throw it away")


@pytest.fixture
def folder(tmp_path):
    for name, content in {"a.bin": b"0123456789", "b.json": b'{"a": 1}\n', "in/c.txt": b"c", "README.md": b"r"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_checksums(tmp_path, leave_out=["README.md"])
    return tmp_path


def test_any_flipped_bit_of_a_folder_is_found_in_the_list_too(folder):
    assert check_files(folder, "mend it")
    rng = np.random.default_rng(1)
    for name in ("a.bin", "b.json", "in/c.txt", CHECKSUMS):
        path = folder / name
        whole = path.read_bytes()
        for position in range(len(whole)):
            flip(path, position, int(rng.integers(8)))
            with pytest.raises(DamagedFileError, match="mend it"):
                check_files(folder, "mend it")
            path.write_bytes(whole)
    assert check_files(folder, "mend it")


def test_a_missing_file_is_named_and_files_of_others_are_not_looked_at(folder):
    (folder / "README.md").write_text("my own words")
    (folder / "support_set.json").write_text("{}")
    assert check_files(folder, "mend it")
    assert listed_files(folder) == {"a.bin", "b.json", "in/c.txt", CHECKSUMS}
    (folder / "in" / "c.txt").unlink()
    with pytest.raises(DamagedFileError, match=r"c\.txt is missing, .*: mend it\.$"):
        check_files(folder, "mend it")


def test_a_folder_without_a_list_is_said_to_be_unchecked(tmp_path):
    assert check_files(tmp_path, "mend it") is False


def test_what_is_renamed_is_on_the_disk_before(tmp_path, monkeypatch):
    import os

    events, fsync, rename = [], os.fsync, os.replace

    def flushed(descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(f"flush {re.sub('[0-9a-f]{8}.partial', 'TOKEN.partial', name)}")
        fsync(descriptor)

    def renamed(source, target):
        events.append(f"rename {os.path.basename(target)}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    with replace_file(tmp_path / "file") as partial:
        partial.write_text("content")
    assert events == ["flush .file.TOKEN.partial", "rename file", f"flush {tmp_path.name}"]
    events.clear()
    with replace_file(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "inside").write_text("content")
    assert events == ["flush inside", "flush .folder.TOKEN.partial", "rename folder", f"flush {tmp_path.name}"]


def test_a_list_that_lost_a_line_is_found_where_its_file_must_be_listed(tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    (tmp_path / "support_set.safetensors").write_text("put there later")
    assert check_files(tmp_path, "remedy", must_be_listed="model*.safetensors")
    lines = (tmp_path / CHECKSUMS).read_text().splitlines(keepends=True)
    (tmp_path / CHECKSUMS).write_text("".join(line for line in lines if "model" not in line))
    assert check_files(tmp_path, "remedy")
    with pytest.raises(DamagedFileError, match=r"has no checksum of model\.safetensors: remedy"):
        check_files(tmp_path, "remedy", must_be_listed="model*.safetensors")


JSON_OF_OTHERS = [b"[]", b"3", b"null", b'"text"', b"{", b"", b"\xff", b"[" * 100_000, b"1" * 5000]


@pytest.mark.parametrize("content", JSON_OF_OTHERS)
def test_json_of_another_type_is_damaged_and_says_what_to_do(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"x\.json is damaged \(.*\): make it anew\."):
        read_json(tmp_path / "x.json", "make it anew")
    (tmp_path / "x.json").write_bytes(b'{"a": 1}')
    assert read_json(tmp_path / "x.json", "") == {"a": 1}
    with pytest.raises(DamagedFileError, match="it holds dict, not list"):
        read_json(tmp_path / "x.json", "make it anew", list)


def test_json_in_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(DamagedFileError, match="it is not a regular file"):
        read_json(tmp_path / "x.json", "make it anew")


def test_no_module_writes_a_text_file_that_a_full_disk_leaves_half_written_or_without_its_name():
    root, found = Path(__file__).parents[1], []
    for path in (*root.glob("*_clipfsar.py"), *(root / "clipfsar").rglob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            writes = re.search(r"(\S+)\.write_(text|bytes)\(", line)
            if writes and writes[1] not in ("partial", "draft") and path.name != "paths_clipfsar.py":
                found.append(f"{path.name}: {line.strip()}")
    assert found == []


def test_no_module_of_the_package_reads_json_files_without_these_checks():
    package = Path(__file__).parents[1] / "clipfsar"
    reading = re.compile(r"json\.loads?\((?=.*(read_text|read_bytes|open)\()")
    found = {path.name for path in package.rglob("*.py") if reading.search(path.read_text())}
    assert found <= {
        "locks.py",
        "sources.py",
        "tables.py",
    }  # which catch what may be wrong, and say it in their own words


def test_only_the_files_asked_for_are_compared(tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    (tmp_path / "config.json").write_text("edited")
    assert check_files(tmp_path, "remedy", only="model*.safetensors")
    with pytest.raises(DamagedFileError, match=r"config\.json has changed since it was written"):
        check_files(tmp_path, "remedy")
