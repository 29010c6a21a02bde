"""Rules for names: paths, files, URLs and classes. This module imports only the standard library.

It decides what looks like a path or an address, which name is public, how a file is replaced, how a URL is encoded,
which class a folder of clips belongs to, which class names differ, and how a long name is broken into lines.
"""

import contextlib
import errno
import itertools
import os
import re
import secrets
import shutil
import stat
import textwrap
import time
import urllib.parse
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

try:
    from .choices_clipfsar import PICTURE_SUFFIXES, VIDEO_SUFFIXES
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import PICTURE_SUFFIXES, VIDEO_SUFFIXES

MAX_NAME_BYTES = 255  # of a file name on common file systems
_FILE_SUFFIXES = (
    *(".bin", ".ckpt", ".csv", ".json", ".jsonl", ".onnx", ".parquet", ".pt", ".pt2", ".pth", ".pyth"),
    *(".safetensors", ".tsv", ".txt", ".yaml", ".yml", *VIDEO_SUFFIXES),
)


_PROTOCOL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")  # two letters at least: C:/ is a disk

_ABANDONED_AFTER_SECONDS = 24 * 3600  # a partial file nobody has written to for so long

# Errors of writing to an open file. Python does not say in which.
_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

# Errors of file systems that cannot flush. A failed disk gives other errors.
_CANNOT_FLUSH = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


def looks_like_path(name: str | os.PathLike) -> bool:
    """Whether a name can only be a path, not a Hub id (NAME or OWNER/NAME).

    It is absolute, begins with `.` or `~`, has a backslash or more than one slash, or ends in a known file suffix.
    """
    name = os.fspath(name)
    return (
        os.path.isabs(name)
        or name.startswith((".", "~"))
        or name.count("/") > 1
        or "\\" in name
        or name.lower().endswith(_FILE_SUFFIXES)
    )


def has_protocol(name: str | os.PathLike) -> bool:
    """Whether a name is an address with a protocol, such as s3://, hf:// or file://.

    An address that became a `Path` counts as well. Only one of its slashes is left.
    """
    match = _PROTOCOL.match(os.fspath(name))
    return match is not None and (isinstance(name, os.PathLike) or os.fspath(name).startswith("/", match.end()))


def check_local(name: str | os.PathLike) -> None:
    """Raises `ValueError` if a name to write to is an address. Python would make a local folder `s3:` of it."""
    if has_protocol(name):
        raise ValueError(
            f"{name} is an address, and nothing is written to addresses: name a path of this machine, and copy the "
            "result afterwards."
        )


def local_path(name: str | os.PathLike) -> Path:
    """The path that a name means: `~` is the home folder. The home folder of nobody, `~nobody`, is a missing file."""
    return Path(os.path.expanduser(name))


def check_utf8(what: str, text: str, remedy: str) -> None:
    """Raises `ValueError` for text that is not UTF-8, as file names of other bytes are, and of old archives."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        is_bytes = not re.search("[\ud800-\udc7f\udd00-\udfff]", text)  # Python reads other bytes as U+DC80 to U+DCFF
        shown = repr(text.encode("utf-8", "surrogateescape")) if is_bytes else ascii(text)
        raise ValueError(f"{what} {shown} is not UTF-8: {remedy}.") from None


def check_path(option: str, name: str | os.PathLike | None, remedy: str = "", is_local: bool = False) -> None:
    """Checks that a local path exists; a name that may be a Hub id passes.

    Args:
        option: Name of the option with this path, for the message.
        name: The path; None passes.
        remedy: Sentence that ends the message.
        is_local: Whether the name is always a path, never a Hub id.

    Raises:
        FileNotFoundError: If the path does not exist.
    """
    if name is None or not (is_local or looks_like_path(name)) or local_path(name).exists():
        return
    raise FileNotFoundError(f"--{option} {name} does not exist.{f' {remedy}' if remedy else ''}")


def check_folder(name: str | os.PathLike) -> None:
    """Raises `FileNotFoundError` for a folder that does not exist, by a name that cannot be a Hub id."""
    if looks_like_path(name) and not local_path(name).exists():
        raise FileNotFoundError(f"There is no folder {os.fspath(name)!r}. A Hub id has the form OWNER/NAME.")


def public_name(name: str | os.PathLike) -> str:
    """Returns a Hub id unchanged, and only the last part of a path, so that no local folders are published."""
    path = os.path.abspath(os.path.expanduser(name))
    return os.path.basename(path) if looks_like_path(name) or os.path.exists(path) else os.fspath(name)


@contextlib.contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a hidden path in the same folder for you to write to, and renames it to `path` when the block ends.

    `path` always holds a complete file: first the old one, then the new one. After an error the old one stays. The new
    file is flushed to the disk before the rename, so a power cut cannot leave a partial file. You can also write a
    folder this way, if `path` does not exist yet.

    Each writer has a hidden path of its own, so that several may write at once; the last one wins. A file gets the
    permissions of any new file, also from libraries that write private ones. What killed writers left is removed
    after a day, see `_remove_abandoned`.
    """
    path = Path(path)
    _remove_abandoned(path)
    partial = path.with_name(file_name_of(f".{path.name}", f".{secrets.token_hex(4)}.partial"))
    permissions = _permissions_of_new_file(partial)
    try:
        with naming_errors(path, partial):
            yield partial
            if partial.is_file() and stat.S_IMODE(partial.stat().st_mode) != permissions:
                partial.chmod(permissions)
            flush_to_disk(partial)
        os.replace(partial, path)
        flush_to_disk(path.parent, deep=False)
    finally:
        _remove(partial)


@contextlib.contextmanager
def naming_errors(path: str | os.PathLike, partial: str | os.PathLike | None = None) -> Iterator[None]:
    """Puts the name of a file into errors of writing it, such as that of a full disk, which have none.

    Args:
        partial: Another name that the file has while it is written, to be replaced in errors.
    """
    try:
        yield
    except OSError as error:
        is_nameless = error.filename is None and error.errno in _CANNOT_WRITE
        if is_nameless or (partial is not None and error.filename in (str(partial), partial)):
            error.filename = os.fspath(path)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in UTF-8. After an error the earlier file is still there: see `replace_file`.

    Links are followed. Pipes, devices and files in folders without write permission are written directly. Characters
    that cannot be encoded, as in file names of other bytes, become escapes (in JSON, JSON's own).
    """
    target = Path(os.path.realpath(path))
    is_special = os.path.exists(path) and (not os.path.isfile(path) or os.fspath(path).startswith(("/dev/", "/proc/")))
    if is_special or (target.exists() and not os.access(target.parent, os.W_OK)):
        with naming_errors(path):
            Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    with naming_errors(path, target), replace_file(target) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def _remove_abandoned(path: Path) -> None:
    """Removes what killed writers of `path` left: names of earlier versions at once, others after a day."""
    _remove(path.with_name(file_name_of(f".{path.name}", ".partial")))
    own_name = re.compile(re.escape(f".{path.name}") + r"\.[0-9a-f]{8}\.partial")
    with os.scandir(path.parent) as entries:
        left = [entry.path for entry in entries if own_name.fullmatch(entry.name)]
    for name in left:
        with contextlib.suppress(FileNotFoundError):  # its writer has finished meanwhile
            if time.time() - os.stat(name).st_mtime > _ABANDONED_AFTER_SECONDS:
                _remove(Path(name))


def _permissions_of_new_file(path: Path) -> int:
    """As the umask and the folder have them, found out with a file: a process cannot read its umask without setting it,
    which other threads would notice."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        path.unlink()


def flush_to_disk(path: str | os.PathLike, deep: bool = True) -> None:
    """Waits until a file, or a folder with all its content, is on the disk.

    `deep=False` waits only for the list of names in a folder, for example after a rename.
    """
    for folder, _, names in os.walk(os.fspath(path)) if deep else ():
        for name in names:
            _flush(Path(folder, name))
        _flush(Path(folder))
    if not deep or not os.path.isdir(path):
        _flush(Path(path))


def _flush(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows cannot open folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)


def check_output_file(path: str | os.PathLike) -> None:
    """Checks before long work that its output file can be written. Creates the folder of the file.

    Raises:
        ValueError: If it is an address.
        OSError: If it cannot be written: the name is too long, it is a folder, or you have no write permission.
    """
    check_local(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file() and not path.is_dir():
        return  # a pipe: its reader would take closing it for the end
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):  # another process was checking it, too
            os.close(os.open(path, os.O_WRONLY))
    else:
        path.unlink(missing_ok=True)


def check_output_folder(option: str, name: str | os.PathLike | None) -> None:
    """Raises `NotADirectoryError` if an option for a folder of results names a file. None passes."""
    if name is not None and Path(name).exists() and not Path(name).is_dir():
        raise NotADirectoryError(f"--{option} {os.fspath(name)} is a file: name a folder.")


def check_picture_name(path: str | os.PathLike | None, option: str = "") -> None:
    """Checks before long work that a picture can be written in the format that its name ends in.

    Args:
        path: The file; None passes, and so does a name without an ending, which becomes a .png.
        option: Option of the command line with this file, for the message.

    Raises:
        ValueError: If the name ends in something else.
    """
    suffix = "" if path is None else os.path.splitext(path)[1]
    if path is not None and suffix and suffix.lower() not in PICTURE_SUFFIXES:
        given = f"--{option} {os.fspath(path)}" if option else os.fspath(path)
        raise ValueError(f"{given}: a picture ends in one of {', '.join(PICTURE_SUFFIXES)}, not in {suffix}.")


def wrapped(name: str, width: int, most_lines: int = 3) -> str:
    """Breaks a name into lines of at most `width` characters for a picture. A name that is too long ends in "..."."""
    return textwrap.fill(name, width, max_lines=most_lines, placeholder=" ...")


def file_name_of(text: str, suffix: str, used: Collection[str] = ()) -> str:
    """Makes a file name from any text: no separators or control characters, at most 255 bytes, not in `used`.

    Args:
        used: Names that are taken. Case is ignored, because some file systems ignore it.
    """
    clean = "".join(letter if letter.isprintable() and letter not in "/\\" else "_" for letter in text) or "_"
    taken = {name.casefold() for name in used}

    def cut(end: str) -> str:
        stem = clean.encode("utf-8", "replace")[: MAX_NAME_BYTES - len(end.encode())]
        return stem.decode("utf-8", "ignore") + end

    names = (cut(suffix if number == 1 else f"_{number}{suffix}") for number in itertools.count(1))
    return next(name for name in names if name.casefold() not in taken)


def printable(text: str) -> str:
    """Text for a terminal or a table: line ends and control characters become escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def class_name_of_folder(folder: str) -> str:
    """Splits a folder name into words, for prompts: brush_hair -> brush hair, ApplyEyeMakeup -> Apply Eye Makeup."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder.replace("_", " "))
    return " ".join(words.split())


def class_names_of_folders(folders: Iterable[str], place: str | os.PathLike) -> dict[str, str]:
    """The class name of each folder of clips, by `class_name_of_folder`.

    Args:
        folders: Names of the folders.
        place: The folder that contains them, for the message.

    Raises:
        ValueError: If two folders have the same class name; the message names both.
    """
    folder_of: dict = {}
    names: dict = {}
    for folder in folders:
        names[folder] = class_name_of_folder(folder)
        other = folder_of.setdefault(names[folder], folder)
        if other != folder:
            raise ValueError(
                f"The folders {other!r} and {folder!r} in {place} both stand for the class {names[folder]!r}: "
                "move their clips into one folder, or rename one of them."
            )
    return names


def check_class_texts(class_names: Sequence[str], token_ids: Sequence[Sequence[int]], n_way: int | None = None) -> None:
    """Checks that different class names have different tokens. Otherwise a text tower cannot tell them apart.

    Args:
        class_names: N names; the same name may appear more than once.
        token_ids: Tokens of each name's prompt, all of one length.
        n_way: Number of names per episode, if there are several episodes. Names are compared within an episode only.

    Raises:
        ValueError: If two names have the same tokens; the message names both.
    """
    n_way = max(1, len(class_names)) if n_way is None else n_way
    name_of: dict[tuple, str] = {}
    for position, (name, ids) in enumerate(zip(class_names, token_ids, strict=True)):
        other = name_of.setdefault((position // n_way, *ids), name)
        if other != name:
            raise ValueError(
                f"Class names {other!r} and {name!r} become the same text for this model, which may not see case, "
                "underscores, punctuation or the end of a long name: rename one of them, or make them one class."
            )


def encoded_url(url: str) -> str:
    """A URL encoded for HTTP: spaces and letters such as ü are percent-encoded, and the host is in IDNA.

    Parts that are already percent-encoded stay, so encoding twice changes nothing.
    """
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not host.isascii():
        name, colon, port = host.partition(":")
        host = f"{name.encode('idna').decode('ascii')}{colon}{port}"
    path, query, fragment = (_percent_encoded(part) for part in (parts.path, parts.query, parts.fragment))
    return urllib.parse.urlunsplit((parts.scheme, f"{_percent_encoded(user)}{at}{host}", path, query, fragment))


def _percent_encoded(text: str) -> str:
    text = re.sub(r"%(?![0-9a-fA-F]{2})", "%25", text)
    return urllib.parse.quote(text, safe="%/?:@!$&'()*+,;=~[]")


__all__ = [
    "check_class_texts",
    "check_folder",
    "check_local",
    "check_output_file",
    "check_output_folder",
    "check_path",
    "check_picture_name",
    "check_utf8",
    "class_name_of_folder",
    "class_names_of_folders",
    "encoded_url",
    "file_name_of",
    "flush_to_disk",
    "has_protocol",
    "local_path",
    "looks_like_path",
    "naming_errors",
    "printable",
    "public_name",
    "replace_file",
    "wrapped",
    "write_text",
]
