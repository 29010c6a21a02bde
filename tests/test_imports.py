"""Who may import whom, and what must be installed: read off the source. What an import loads: in a fresh process."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import transformers
from transformers.dynamic_module_utils import get_imports, get_relative_imports

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LIBRARY = sorted(path.stem for path in ROOT.glob("*_clipfsar.py"))
# Siblings that each module of the library may import; a new module gets its line here.
MAY_IMPORT = {
    "choices_clipfsar": set(),
    "backbones_clipfsar": set(),
    "configuration_clipfsar": {"backbones_clipfsar", "choices_clipfsar", "paths_clipfsar"},
    "resnet_clipfsar": {"configuration_clipfsar"},
    "paths_clipfsar": {"choices_clipfsar"},
    "alignment_clipfsar": set(),
    # The pipeline in a function: the model names the pipeline that opens its folder.
    "hub_clipfsar": {"choices_clipfsar", "offloading_clipfsar", "paths_clipfsar", "pipeline_clipfsar"},
    "offloading_clipfsar": set(),
    "labels_clipfsar": {"choices_clipfsar"},
    "plain_clipfsar": {"backbones_clipfsar", "choices_clipfsar", "configuration_clipfsar"},
    "temporal_clipfsar": {"configuration_clipfsar"},
    "heads_clipfsar": {"alignment_clipfsar", "choices_clipfsar"},
    "comparing_clipfsar": {"alignment_clipfsar", "choices_clipfsar", "heads_clipfsar", "labels_clipfsar"},
    "modeling_clipfsar": {
        *("alignment_clipfsar", "backbones_clipfsar", "choices_clipfsar", "configuration_clipfsar", "resnet_clipfsar"),
        *("comparing_clipfsar", "heads_clipfsar", "hub_clipfsar", "labels_clipfsar", "plain_clipfsar"),
        *("offloading_clipfsar", "temporal_clipfsar"),
    },
    "limits_clipfsar": set(),
    "spans_clipfsar": set(),
    "container_clipfsar": {"limits_clipfsar"},
    "decoding_clipfsar": {"container_clipfsar", "limits_clipfsar"},
    "parent_process_clipfsar": set(),
    "reader_process_clipfsar": {
        *("container_clipfsar", "decoding_clipfsar", "limits_clipfsar", "parent_process_clipfsar"),
    },
    "frame_archive_clipfsar": {"container_clipfsar", "limits_clipfsar"},
    "download_clipfsar": {"limits_clipfsar", "paths_clipfsar"},
    "video_clipfsar": {
        *("choices_clipfsar", "container_clipfsar", "decoding_clipfsar", "frame_archive_clipfsar"),
        *("download_clipfsar", "limits_clipfsar", "paths_clipfsar", "reader_process_clipfsar", "spans_clipfsar"),
    },
    "pixels_clipfsar": {"limits_clipfsar"},
    "processing_clipfsar": {
        *("choices_clipfsar", "configuration_clipfsar", "frame_archive_clipfsar", "pixels_clipfsar", "video_clipfsar"),
        *("backbones_clipfsar", "class_texts_clipfsar", "limits_clipfsar", "paths_clipfsar"),
    },
    "class_texts_clipfsar": {"choices_clipfsar", "paths_clipfsar"},
    "episodes_clipfsar": {"choices_clipfsar", "class_texts_clipfsar"},
    "explanation_clipfsar": {"choices_clipfsar", "paths_clipfsar"},
    "fingerprint_clipfsar": {"backbones_clipfsar", "offloading_clipfsar", "paths_clipfsar"},
    "support_set_files_clipfsar": {"choices_clipfsar", "download_clipfsar", "limits_clipfsar", "paths_clipfsar"},
    "enrolled_clipfsar": {
        *("choices_clipfsar", "explanation_clipfsar", "fingerprint_clipfsar", "limits_clipfsar", "modeling_clipfsar"),
        *("heads_clipfsar", "support_set_files_clipfsar", "tuning_clipfsar", "unknown_clipfsar"),
    },
    "enrolling_clipfsar": {
        *("choices_clipfsar", "class_texts_clipfsar", "modeling_clipfsar", "spans_clipfsar"),
        "support_set_files_clipfsar",
    },
    "unknown_clipfsar": {"left_out_clipfsar", "modeling_clipfsar", "support_set_files_clipfsar"},
    "left_out_clipfsar": {
        *("heads_clipfsar", "modeling_clipfsar", "spans_clipfsar", "support_set_files_clipfsar"),
    },
    "review_clipfsar": {"left_out_clipfsar", "paths_clipfsar", "support_set_files_clipfsar"},
    "suggestion_clipfsar": {"choices_clipfsar", "support_set_files_clipfsar"},
    "tuning_clipfsar": {"left_out_clipfsar", "support_set_files_clipfsar"},
    "support_set_clipfsar": {
        *("choices_clipfsar", "class_texts_clipfsar", "enrolled_clipfsar", "explanation_clipfsar"),
        *("enrolling_clipfsar", "fingerprint_clipfsar", "review_clipfsar", "suggestion_clipfsar"),
        *("paths_clipfsar", "support_set_files_clipfsar", "tuning_clipfsar", "video_clipfsar"),
    },
    "pipeline_clipfsar": {
        *("choices_clipfsar", "configuration_clipfsar", "modeling_clipfsar", "processing_clipfsar", "video_clipfsar"),
        *("episodes_clipfsar", "explanation_clipfsar", "support_set_clipfsar", "fingerprint_clipfsar"),
        *("backbones_clipfsar", "class_texts_clipfsar", "support_set_files_clipfsar"),
    },
}
# pytest puts tests/ on the path: helpers, and folders of them, are imported by these names. `make upstream` puts
# transformers' own tests there.
TEST_MODULES = {"tests", "tests_of_transformers"}
TEST_MODULES |= {path.stem for path in (ROOT / "tests").iterdir() if path.is_dir() or path.suffix == ".py"}
OURS = ("clipfsar", "train", "demo", "benchmarks")
PROGRAMS = sorted(
    path.relative_to(ROOT).as_posix() for folder in (*OURS, "tests") for path in (ROOT / folder).rglob("*.py")
)
# From the ground up: what lies on a floor imports from its own folder and from the floors below it.
FLOORS = (
    LIBRARY,
    ("clipfsar.json_files", "clipfsar.option_conditions"),
    (
        *("clipfsar.metrics", "clipfsar.names", "clipfsar.options", "clipfsar.presets", "clipfsar.plots"),
        *("clipfsar.content", "clipfsar.checked_files", "clipfsar.locks", "clipfsar.processes"),
    ),
    ("clipfsar.data", "clipfsar.checkpoints"),
    ("clipfsar.inference",),
    ("clipfsar.evaluation", "clipfsar.page"),
    ("clipfsar.training",),
    ("clipfsar.reproduction",),
    ("clipfsar",),
    ("clipfsar.cli",),
    ("clipfsar.__main__",),
    ("train", "demo"),
    ("benchmarks",),
)
# What a user of the checkpoint has without installing anything of ours; the last three come with transformers.
TRAVELLING_DEPENDENCIES = {"torch", "transformers", "numpy", "PIL", "huggingface_hub", "safetensors", "tqdm"}
DISTRIBUTION_OF_MODULE = {"PIL": "pillow", "yaml": "pyyaml"}


def imports_of(path: Path) -> list[tuple[str, bool, bool]]:
    """All imports of a file, in functions too: (module, whether it is relative, whether it stands inside a `try`)."""
    found = []

    def visit(node: ast.AST, in_try: bool):
        if isinstance(node, ast.Import):
            found.extend((alias.name, False, in_try) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node.level > 0, in_try))
        for child in ast.iter_child_nodes(node):
            visit(child, in_try or isinstance(node, ast.Try))

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def is_third_party(module: str) -> bool:
    top = module.split(".")[0]
    own = {*LIBRARY, *TEST_MODULES, *OURS}
    return top not in own and top not in sys.stdlib_module_names


def distribution_name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def undeclared(path: Path, extras: tuple[str, ...]) -> set[str]:
    """Third-party modules that a file cannot do without and that neither the dependencies nor the extras name."""
    requirements = list(PYPROJECT["project"]["dependencies"])
    for extra in extras:
        requirements += PYPROJECT["project"]["optional-dependencies"][extra]
    declared = {distribution_name(requirement) for requirement in requirements}
    needed = {
        module.split(".")[0]
        for module, relative, in_try in imports_of(path)
        if not relative and not in_try and is_third_party(module)
    }
    return {module for module in needed if DISTRIBUTION_OF_MODULE.get(module, module).replace("_", "-") not in declared}


def test_imports_are_found_wherever_they_stand(tmp_path):
    file = tmp_path / "example.py"
    file.write_text(
        "import a.b\nfrom .c import d\ndef f():\n    from e import g\n"
        "try:\n    import h\nexcept ImportError:\n    import i\n"
    )
    assert imports_of(file) == [
        ("a.b", False, False),
        ("c", True, False),
        ("e", False, False),
        ("h", False, True),
        ("i", False, True),
    ]


@pytest.mark.parametrize("module", LIBRARY)
def test_library_modules_import_each_other_in_one_direction(module):
    imported = {name.split(".")[0] for name, _, _ in imports_of(ROOT / f"{module}.py")}
    assert imported & set(LIBRARY) <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", LIBRARY)
def test_library_never_imports_a_program(module):
    imported = {name.split(".")[0] for name, _, _ in imports_of(ROOT / f"{module}.py")}
    assert not imported & {*OURS, *TEST_MODULES}


@pytest.mark.parametrize("module", LIBRARY)
def test_library_imports_siblings_only_inside_try(module):
    # Copied beside a checkpoint, a sibling has no top-level name, and a program's folder has no package.
    for name, relative, in_try in imports_of(ROOT / f"{module}.py"):
        assert in_try or not (relative or name in LIBRARY), name


@pytest.mark.parametrize("module", LIBRARY)
def test_travelling_code_needs_nothing_that_a_user_of_the_checkpoint_lacks(module):
    needed = {name.split(".")[0] for name, relative, in_try in imports_of(ROOT / f"{module}.py") if not in_try}
    assert {name for name in needed if is_third_party(name)} <= TRAVELLING_DEPENDENCIES


@pytest.mark.parametrize("module", LIBRARY)
def test_what_transformers_reads_out_of_travelling_code_is_what_stands_there(module):
    # transformers searches the text, docstrings included, to know which files and packages the code needs.
    path = ROOT / f"{module}.py"
    siblings = {name for name, relative, _ in imports_of(path) if relative}
    assert set(get_relative_imports(path)) == siblings
    needed = {name.split(".")[0] for name, relative, in_try in imports_of(path) if not relative and not in_try}
    assert {name for name in get_imports(path) if is_third_party(name)} <= needed


@pytest.mark.parametrize("module", LIBRARY)
def test_dependencies_of_the_library_are_declared(module):
    assert undeclared(ROOT / f"{module}.py", extras=()) == set()


def test_importing_the_library_loads_no_package_that_transformers_clip_does_not():
    # Data sets, decoders and matplotlib come with the first use: an import takes as long as that of CLIPModel.
    # Before 5.23, transformers loads PyAV along with its own Pipeline, the base class of ours: nobody can avoid it.
    release = tuple(int(number) for number in transformers.__version__.split(".")[:2])
    classes = "CLIPImageProcessor, CLIPModel, CLIPTokenizer" + (", Pipeline" if release < (5, 23) else "")
    program = f"""
import sys
from transformers import {classes}
before = set(sys.modules)
import {", ".join(LIBRARY)}
print(*{{name.split(".")[0] for name in set(sys.modules) - before}})
"""
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(child.stdout.split())
    assert set(LIBRARY) <= loaded
    assert {name for name in loaded if is_third_party(name)} <= {"transformers"}


@pytest.mark.parametrize("path", PROGRAMS)
def test_dependencies_of_programs_and_tests_are_declared(path):
    extras = {"tests": ("export", "dev"), "demo": ("demo",)}.get(path.split("/")[0], ())
    assert undeclared(ROOT / path, extras) == set()


@pytest.mark.parametrize("path", [path for path in PROGRAMS if not path.startswith("tests/")])
def test_programs_do_not_import_tests(path):
    assert not {name.split(".")[0] for name, _, _ in imports_of(ROOT / path)} & TEST_MODULES


def floor_of(module: str) -> int | None:
    """The floor a module lies on; None for a module that is not ours."""
    floors = [floor for floor, rooms in enumerate(FLOORS) if any(_lies_in(module, room) for room in rooms)]
    return max(floors, default=None)


def _lies_in(module: str, room: str) -> bool:
    if room == "clipfsar":  # the package itself, which names everything; its rooms lie on floors of their own
        return module == room
    return module == room or module.startswith(f"{room}.")


@pytest.mark.parametrize("path", [path for path in PROGRAMS if path.split("/")[0] in OURS])
def test_imports_only_point_down(path):
    importer = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    floor = floor_of(importer)
    for name, relative, _ in imports_of(ROOT / path):
        assert not relative, f"{path} imports {name} relatively"
        other = floor_of(name)
        if other is None:
            continue
        assert floor is not None, f"{importer} lies on no floor"
        room = importer.rpartition(".")[0]
        assert other < floor or _lies_in(name, room), f"{importer} (floor {floor}) imports {name} (floor {other})"


def test_nothing_changes_where_modules_are_looked_for():
    changes = re.compile(r"sys\.path(\[|\.(append|insert|extend)| *\+?= )")
    paths = [ROOT / path for path in PROGRAMS if path != "tests/test_imports.py"]
    assert [str(path) for path in paths if changes.search(path.read_text(encoding="utf-8"))] == []


def test_the_wheel_holds_the_library_and_the_package():
    assert sorted(PYPROJECT["tool"]["setuptools"]["py-modules"]) == LIBRARY
    assert PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == ["clipfsar*"]
    assert (ROOT / "clipfsar" / "py.typed").is_file()


def test_no_package_file_stands_where_it_breaks_test_collection():
    assert not (ROOT / "__init__.py").exists()
    assert not (ROOT / "tests" / "__init__.py").exists()
