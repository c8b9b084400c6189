# The two commands of the README are `make demo` and `make test`; each does all the set-up it needs.
# LIGHT=1 sets up `.venv-light` without SeqIO, TensorFlow and TFDS instead of `.venv`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv$(if $(LIGHT),-light)
LOCK := requirements$(if $(LIGHT),-light).lock
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHECK := .venv-check
JOBS ?= 2
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-plan bench plan lint types docs docs-version mutate lock package test-package release \
	rehearse clean

demo: $(READY)
	@$(BIN)/flanx sweep --jobs=2 --gin_file=sweeps/demo.gin
	@$(BIN)/flanx sweep --jobs=2 --gin_file=sweeps/demo_cot.gin

test: $(READY)
	@$(BIN)/python -m pytest -n $(JOBS) -m "not slow" tests

test-slow: $(READY)
	@$(BIN)/python -m pytest -m slow tests

# The real TPU compiler on Flan-T5-Small, about a minute. libtpu is 137 MB, so it has a lock file of its own.
test-plan: $(VENV)/.libtpu
	@$(BIN)/python -m pytest "tests/test_tpu_compile.py::test_flan_t5_small_compiles[v5e]"

$(VENV)/.libtpu: $(READY) requirements-plan.lock
	@$(BIN)/python $(PIP) --require-hashes -r requirements-plan.lock
	@touch $@

# Quick forms, under five minutes on two slow cores; `make bench BENCH="decode growth"` for others.
BENCH ?= build decode_step fit following guesses load mixture padding render step_overhead store_format train_step
bench: $(READY)
	@for name in $(BENCH); do $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

# docs/plan.md: the paper's ten models through the TPU compiler (needs libtpu: pip install 'flanx[tpu-plan]').
plan: $(READY)
	@$(BIN)/python benchmarks/plan_page.py --out docs/plan.md $(PLAN_FLAGS)

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

# pyright (standard) and mypy over flanx/ and tasks/.
types: $(READY) $(CHECK)/.ready
	@$(CHECK)/bin/pyright --pythonpath $(BIN)/python
	@$(CHECK)/bin/mypy --python-executable $(BIN)/python

# The site in site/, from docs/ and the docstrings; a warning is an error.
docs: $(CHECK)/.ready
	@NO_MKDOCS_2_WARNING=1 $(CHECK)/bin/mkdocs build --strict --quiet

# Breaks the code in the places of tests/mutations.toml, one at a time, and counts the breaks that the tests catch.
mutate: $(READY)
	@$(BIN)/python -m tests.mutate --out docs/mutation.md $(MUTATE_FLAGS)

# The environment, from the lock file alone (names, versions, hashes), then flanx itself without dependencies.
$(READY): $(LOCK) setup.py
	@test -n "$(PYTHON)" || { echo "flanx needs Python 3.11 or newer: install it, or name it with 'make PYTHON=/path/to/python3'"; exit 2; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version) (once, a few minutes)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python $(PIP) --require-hashes -r $(LOCK)
	@FLANX_LIGHT=$(LIGHT) $(BIN)/python $(PIP) --no-deps --no-build-isolation -e .
	@touch $@

# Type checkers, the docs site and packaging: nothing that a run needs, so an environment of their own.
$(CHECK)/.ready: requirements-check.lock
	@test -n "$(PYTHON)" || { echo "flanx needs Python 3.11 or newer: install it, or name it with 'make PYTHON=/path/to/python3'"; exit 2; }
	@echo "setting up $(CHECK)"
	@$(PYTHON) -m venv --clear $(CHECK)
	@$(CHECK)/bin/python $(PIP) --require-hashes -r requirements-check.lock
	@touch $@

# Resolves setup.py again for every supported Python. Needs `pip install uv`.
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-header --no-annotate --constraint lock-constraints.txt --quiet
lock:
	$(COMPILE) setup.py --extra plots --extra dev -o requirements.lock
	FLANX_LIGHT=1 $(COMPILE) --no-cache setup.py --extra plots --extra dev -o requirements-light.lock
	sed -n '/"check": \[/,/\],/p; /^DOCS = /p' setup.py | grep -o '"[^"]*[<>=][^"]*"' | tr -d '"' | $(COMPILE) - -o requirements-check.lock
	printf 'libtpu\n' | $(COMPILE) - -o requirements-plan.lock
	printf 'jax[cuda13]\n' | $(COMPILE) --constraint requirements-light.lock - -o requirements-cuda.lock

# Wheel and source distribution in dist/, the same bytes from the same commit, their metadata checked, and the SBOM.
package: $(CHECK)/.ready
	@rm -rf dist
	@$(CHECK)/bin/python release/package.py --out=dist
	@$(CHECK)/bin/twine check --strict dist/*.whl dist/*.tar.gz

# Both of dist/, each in an empty environment, away from the checkout.
test-package:
	@$(PYTHON) release/install.py dist

# Builds twice and compares, tags, and prints the commands that publish; RELEASE_FLAGS=--dry_run tags nothing.
release: $(CHECK)/.ready
	@$(CHECK)/bin/python release/tag.py $(RELEASE_FLAGS)

# The site of one version on the branch gh-pages of this clone, which nothing pushes: `make docs-version VERSION=0.2`.
docs-version: $(CHECK)/.ready
	@test -n "$(VERSION)" || { echo "give the version: make docs-version VERSION=0.2"; exit 2; }
	@NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(CHECK)/bin:$$PATH" $(CHECK)/bin/mike deploy --update-aliases $(VERSION) latest
	@NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(CHECK)/bin:$$PATH" $(CHECK)/bin/mike set-default latest

# The whole road of docs/reproduce.md in miniature, eight minutes.
rehearse: $(READY)
	@$(BIN)/flanx reproduce flan_t5_small --rehearse

clean:
	rm -rf .venv .venv-light $(CHECK) out dist build site *.egg-info
