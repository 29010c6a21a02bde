# `make demo` and `make test` install their packages in .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PAGE_VENV ?= .venv-demo
LOWEST_VENV ?= .venv-lowest
NEWEST_VENV ?= .venv-newest
# Quiet, offline and repeatable: no target may ask the Hub.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install demo page docs test programs upstream lowest newest benchmark quality format clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(BIN)/.installed  ## make .venv with the project and its development tools

demo: install  ## run the demo: a first answer, two tracks, one training, a report (under 10 minutes on 2 cores)
	$(BIN)/python -m demo.synthetic.run --output_dir demo_output

$(PAGE_VENV)/.installed: demo/requirements.txt
	@echo "Installing the page's packages into $(PAGE_VENV), once: PyTorch (on Linux with CUDA, gigabytes), Gradio and others. This takes minutes."
	$(PYTHON) -m venv $(PAGE_VENV)
	$(PAGE_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement demo/requirements.txt
	touch $@

page: $(PAGE_VENV)/.installed  ## start the demo page in a separate environment (other models: see demo/README.md)
	$(PAGE_VENV)/bin/python -m demo.page

docs: install  ## run the code blocks of README and docs and the notebooks, and build the documentation into site/; warnings are errors
	$(BIN)/python -m pytest tests/test_documentation.py tests/test_notebooks.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: install  ## run the tests, without whole programs (`make programs`), code blocks and notebooks (`make docs`)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		--ignore tests/test_documentation.py --ignore tests/test_notebooks.py -m "not whole_program"

programs: install  ## run whole programs as users start them: the wheel's commands, accelerate launch, the demo
	$(BIN)/python -m pytest -n 2 -m whole_program --dist loadfile \
		$(addprefix tests/, test_wheel.py test_demo.py test_training.py test_export_model.py test_pipeline_clipfsar.py \
		test_remote_code.py test_trainable.py test_study.py test_sharding.py test_torchrun.py \
		test_convert_clip_mei.py test_reproduce.py test_heads_clipfsar.py test_package.py)

upstream: install  ## run transformers' own tests on our classes (4 minutes on 2 cores; downloads them once)
	PYTHONPATH=$$($(BIN)/python tests/transformers_source.py) $(BIN)/python -m pytest -n 2 \
		--override-ini addopts=-r\ s --disable-pytest-warnings tests/transformers_suite.py

$(LOWEST_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST_VENV)
	$(LOWEST_VENV)/bin/pip install --quiet --disable-pip-version-check uv
	$(LOWEST_VENV)/bin/uv pip install --quiet --python $(LOWEST_VENV)/bin/python \
		--resolution lowest-direct --editable '.[dev]'
	touch $@

lowest: $(LOWEST_VENV)/.installed  ## run the tests with the lowest versions that pyproject.toml allows (installs 6 GB)
	$(LOWEST_VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

$(NEWEST_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

newest: $(NEWEST_VENV)/.installed  ## run the tests with the newest versions that pyproject.toml allows (installs 6 GB)
	$(NEWEST_VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

benchmark: install  ## run all benchmarks and write benchmarks/results.md (about ten minutes on 2 cores)
	$(BIN)/python -m benchmarks.run_all

quality: install  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/check_types.py

format: install  ## fix style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove environments, outputs and caches
	rm -rf $(VENV) $(PAGE_VENV) $(LOWEST_VENV) $(NEWEST_VENV) demo_output site *.egg-info build .pytest_cache .ruff_cache .mypy_cache
