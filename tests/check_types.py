"""Run mypy over the library and the package, as `make quality` does: python tests/check_types.py [options of mypy]."""

import re
import sys
import tempfile
from pathlib import Path

from mypy import api

ROOT = Path(__file__).resolve().parents[1]
# Modules of the library import each other as a package's on the Hub and by their plain names here. mypy knows them by
# their plain names, so it reads copies whose relative imports are plain ones; its messages name the original's lines.
RELATIVE_IMPORT = re.compile(r"^( +from )\.(?=\w+_clipfsar import )", re.MULTILINE)


def with_plain_imports(source: str) -> str:
    return RELATIVE_IMPORT.sub(r"\1", source)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--config-file={ROOT / 'pyproject.toml'}", *sys.argv[1:]]
        for path in sorted(ROOT.glob("*_clipfsar.py")):
            copy = Path(folder, path.name)
            copy.write_text(with_plain_imports(path.read_text(encoding="utf-8")), encoding="utf-8")
            options += ["--shadow-file", path.name, str(copy)]
        output, complaints, code = api.run(options)
    sys.stdout.write(output)
    sys.stderr.write(complaints)
    return code


if __name__ == "__main__":
    sys.exit(main())
