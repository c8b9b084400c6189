# The two commands of the README are `make demo` and `make test`; each does all the set-up it needs.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2

.PHONY: demo test test-slow test-plan bench plan lint lock wheel clean

demo: $(READY)
	@$(BIN)/flanx sweep --jobs=2 --gin_file=sweeps/demo.gin
	@$(BIN)/flanx sweep --jobs=2 --gin_file=sweeps/demo_cot.gin

test: $(READY)
	@$(BIN)/python -m pytest -n $(JOBS) -m "not slow" tests

test-slow: $(READY)
	@$(BIN)/python -m pytest -m slow tests

# The real TPU compiler on Flan-T5-Small, about a minute. libtpu is 137 MB, so it has a lock file of its own.
test-plan: $(VENV)/.libtpu
	@$(BIN)/python -m pytest "tests/test_plan.py::test_flan_t5_small_compiles[v5e]"

$(VENV)/.libtpu: $(READY) requirements-plan.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-plan.lock
	@touch $(VENV)/.libtpu

bench: $(READY)
	@for f in benchmarks/*.py; do $(BIN)/python $$f --quick || exit 1; done

# docs/plan.md: the paper's ten models through the TPU compiler (needs libtpu: pip install 'flanx[tpu-plan]').
plan: $(READY)
	@$(BIN)/python -m flanx.plan.page --out docs/plan.md $(PLAN_FLAGS)

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

# The environment, from the lock file alone (names, versions, hashes), then flanx itself without dependencies.
$(READY): requirements.lock setup.py
	@test -n "$(PYTHON)" || { echo "flanx needs Python 3.11 or newer: install it, or name it with 'make PYTHON=/path/to/python3'"; exit 2; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version) (once, a few minutes)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

# Resolves setup.py again for every supported Python. Needs `pip install uv`.
lock:
	uv pip compile setup.py --universal --python-version 3.11 --generate-hashes --extra plots --extra dev \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate --constraint lock-constraints.txt -o requirements.lock
	printf 'libtpu\n' | uv pip compile - --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-header --no-annotate --constraint lock-constraints.txt -o requirements-plan.lock

wheel: $(READY)
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w dist .

clean:
	rm -rf $(VENV) out dist build *.egg-info
