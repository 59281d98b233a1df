# Every target does its own set-up. `make` alone says what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test processes, each with one thread (tests/conftest.py); more than there are cores are slower.
WORKERS ?= 2
# make CPU=1 ...: torch without CUDA's gigabytes, for Linux without a GPU.
TORCH_FOR_CPU := https://download.pytorch.org/whl/cpu
# An empty home has no kernels and no caches: everything that is needed lies in the project.
export HF_HUB_OFFLINE := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: help setup tour test test-all lab notebooks exercises classroom slides site lock
help:
	@echo "make tour      execute the quickstart and export it to runs/tour/tour.html (3 minutes)"
	@echo "make test      lint, types and short tests (3 to 6 minutes on 2 cores)"
	@echo "make test-all  the long tests: every system and scheduler, notebooks in full, the wheel in an empty environment (longer)"
	@echo "make lab       JupyterLab on the notebooks, with the interactive lab open"
	@echo "make notebooks write the notebooks, with gaps, from their .py sources and execute them"
	@echo "make exercises write the exercises and their solutions from notebooks/exercises/masters, and execute the solutions"
	@echo "make classroom install otter-grader and make the notebooks and grading zips of an examination in runs/classroom"
	@echo "make slides    draw eight slides and a handout for a lesson in runs/slides (a minute)"
	@echo "make site      install Sphinx and build notebooks, documents and API reference as a site in runs/site (2 minutes)"
	@echo "               with REPOSITORY=https://github.com/owner/name, the site has launch buttons and links to it"
	@echo "make CPU=1 ... the first time: torch without CUDA, for Linux without a GPU (2 GB instead of 6)"
	@echo "make lock      write requirements.lock anew from what is installed in $(VENV)"

setup: $(VENV)/.ready
$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12), (3, 13), (3, 14)])" || \
	  { echo "Python 3.11, 3.12, 3.13 or 3.14 is needed, $$($(PYTHON) --version) was found; name another: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(CPU),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --index-url $(TORCH_FOR_CPU) $$(grep '^torch==' requirements.lock))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

tour: setup
	$(BIN)/fastdiff-lab tour

# Each process begins with half of the files in their order, so that what a file builds for its tests is built once, and then takes of the other's.
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not long"

# A file's tests share a page or a zip, so a file is one worker's, in the order of tests/conftest.py: marks of groups have no effect with pytest 9.2 (pytest-xdist issue 1386).
# Notebooks run in processes of their own; this one only waits. The tour's test runs the quickstart, and otter-grader the solutions, so they
# are not run again. The others run with their gaps filled (the quickstart has none), and a check that does not say right stops them. Without the
# plugin, because on Python 3.11 a traceback that pytest formats for a socket that nbclient left open, while Python collects garbage in ast.parse,
# ends in "SystemError: AST constructor recursion depth mismatch" (cpython issue 106905).
test-all: setup $(VENV)/.classroom $(VENV)/.site
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m long
	$(BIN)/python -m teaching.gaps notebooks --filled runs/filled
	rm runs/filled/00_quickstart.ipynb
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -p no:unraisableexception --nbmake --nbmake-timeout=900 runs/filled/*.ipynb notebooks/exercises/*.ipynb

lab: setup
	$(BIN)/fastdiff-lab lab

notebooks: setup
	$(BIN)/python -m teaching.gaps notebooks
	OMP_NUM_THREADS=1 $(BIN)/jupyter execute --inplace notebooks/*.ipynb
	$(BIN)/python -m teaching.minutes notebooks
	$(BIN)/python .ci/tidy_notebooks.py notebooks/*.ipynb

exercises: setup
	$(BIN)/python -m teaching.sheets notebooks/exercises

# Nineteen packages of pure Python beside the others (39 MB, seconds), none of which changes a pin: no environment of its own is needed.
$(VENV)/.classroom: $(VENV)/.ready requirements-classroom.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock -r requirements-classroom.lock
	@touch $@

classroom: $(VENV)/.classroom
	$(BIN)/python -m teaching.classroom assign notebooks/exercises runs/classroom

slides: setup
	$(BIN)/python -m teaching.slides runs/slides

# Pure Python but SQLAlchemy, beside the others; Sphinx and docutils are the versions of the examinations.
$(VENV)/.site: $(VENV)/.ready requirements-site.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock -r requirements-site.lock
	@touch $@

# A copy, because a link would be followed to a place outside of the source. Nothing is executed.
site: $(VENV)/.site
	PYTHON=$(BIN)/python FASTDIFF_REPOSITORY=$(REPOSITORY) docs/site/build runs/site

# With Python 3.11, whose packages all others need too; pins with a marker, which it does not install, are kept.
lock: setup
	$(BIN)/python -m pip freeze --all --exclude pip --exclude-editable | grep -v -i -E '^(nvidia|triton|cuda)' | sed 's/+cpu$$//' | grep -v -x -F -f requirements-classroom.lock | grep -v -x -F -f requirements-site.lock > requirements.lock.part
	grep ';' requirements.lock >> requirements.lock.part
	mv requirements.lock.part requirements.lock
