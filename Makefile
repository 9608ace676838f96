# make app · make test · make check · make bench
# All of them set the same virtual environment up first; it is remade when pyproject.toml or the lock changes.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two cores and many thread pools do not mix: one setting for every command.
export TOKENIZERS_PARALLELISM := false

.PHONY: app test check bench lock

app: $(STAMP)
	$(BIN)/python app.py

# A worker to a core, each with one thread: most of a test's time is imports and small tensors, which use no second one.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxschedchunk 1 $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] < (3, 13) else "Tandem needs Python 3.11 or 3.12, this is %d.%d: make app PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@# What pip would do, on all cores and without others' tests. Templates in some packages are no Python: no matter.
	$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
	touch $(STAMP)

# Freeze what is installed now. torch is named without its local tag, so that one lock serves CPU and CUDA builds.
lock:
	$(BIN)/python -m pip freeze --exclude-editable --disable-pip-version-check | sed 's/+cpu$$//' | grep -viP '^(nvidia-(?!ml-py)|triton|pip==|setuptools==)' > requirements.lock
