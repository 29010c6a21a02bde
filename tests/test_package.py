"""`import clipfsar`: quick, and every public name is there when it is asked for."""

import ast
import importlib.util
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tiny_data import REPOSITORY

import clipfsar
from clipfsar import _MODULE_OF_NAME

SOURCE = ast.parse(Path(clipfsar.__file__).read_text(encoding="utf-8"))


def test_importing_the_package_loads_neither_torch_nor_transformers_and_is_quick():
    program = "import sys; before = set(sys.modules); import clipfsar; print(*set(sys.modules) - before)"
    seconds = []
    for _ in range(3):
        timed = f"import time; start = time.perf_counter(); {program}; print(time.perf_counter() - start)"
        child = subprocess.run(
            [sys.executable, "-c", timed], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        modules, duration = child.stdout.splitlines()
        assert {name.split(".")[0] for name in modules.split()} <= {"clipfsar", *sys.stdlib_module_names}
        seconds.append(float(duration))
    assert min(seconds) < 0.1


@pytest.mark.parametrize("name", sorted(_MODULE_OF_NAME))
def test_every_public_name_resolves(name):
    value = getattr(clipfsar, name)
    assert value is getattr(sys.modules[_MODULE_OF_NAME[name]], name)
    assert inspect.isclass(value) or callable(value)


@pytest.mark.whole_program
def test_a_model_of_the_package_can_go_to_pipeline_in_a_fresh_process():
    program = (
        "from transformers import pipeline; from transformers.pipelines import PIPELINE_REGISTRY\n"
        "from clipfsar import load_model\n"
        "print('few-shot-video-classification' in PIPELINE_REGISTRY.get_supported_tasks())"
    )
    child = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert child.stdout == "True\n"


def test_type_checkers_see_the_names_of_the_table():
    (block,) = [node for node in SOURCE.body if isinstance(node, ast.If)]
    seen = {alias.name: statement.module for statement in block.body for alias in statement.names}
    assert seen == _MODULE_OF_NAME
    assert sorted(clipfsar.__all__) == sorted([*_MODULE_OF_NAME, "EPISODIC_ACCURACY", "__version__"])
    assert set(clipfsar.__all__) <= set(dir(clipfsar))


def test_a_name_is_looked_up_once():
    first = clipfsar.SupportSet
    assert vars(clipfsar)["SupportSet"] is first


def test_a_misspelt_name_suggests_the_nearest():
    with pytest.raises(AttributeError, match=r"no attribute 'SuportSet': did you mean 'SupportSet'\?"):
        clipfsar.SuportSet  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute '_private'$"):
        clipfsar._private  # noqa: B018


def test_the_version_stands_in_one_place():
    assert clipfsar.__version__ == "0.2.0"
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "clipfsar.__version__"}


def test_the_metric_lies_where_its_path_says():
    # `evaluate.load` of it: test_wheel.py
    assert (Path(clipfsar.EPISODIC_ACCURACY) / "episodic_accuracy.py").is_file()


def test_the_package_says_that_it_has_types():
    assert (Path(clipfsar.__file__).parent / "py.typed").is_file()
    assert importlib.util.find_spec("clipfsar").submodule_search_locations
