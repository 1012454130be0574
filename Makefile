# `make` lists the targets. Each one works on a fresh machine: it creates .venv and installs what it needs.
# The minutes are a target's time limit on two cores, after installation; .ci/run reports targets that exceed it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-kernels lint dist bench figures figures-paper vectors oracle-report docs notebooks handout mutants peers clean

help:  ## list the targets
	@awk -F':.*## | [|] ' '/^[a-z][a-z-]*:.*## / {printf "  make %-14s %7s  %s\n", $$1, (NF > 2 ? $$2 : ""), $$NF}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter that creates .venv; OUT=FOLDER is where the demo writes"
	@echo "  KERNELS=\"Haswell Zen\" THREADS=1 tests only these OpenBLAS kernels, with one BLAS thread"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "kfac_ref needs Python 3.11 or newer; choose one: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv. On other systems: install Python with venv and ensurepip, or choose another: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of extras: it is renewed when the metadata change.
$(VENV)/run: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/test: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/run

$(VENV)/lint: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	@touch $@ $(VENV)/run

$(VENV)/dist: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dist]'
	@touch $@ $(VENV)/run

$(VENV)/docs: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@ $(VENV)/run

demo: $(VENV)/run  ## 2 min | train on the embedded digits, compare with the exact Fisher, write figures and tables
	$(BIN)/kfac-ref demo --out $(OUT)

# One worker per core; tests that share something slow to build run on one worker (the mark xdist_group).
PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup

test: $(VENV)/test  ## 3 min | run the tests that are not marked slow
	$(PYTEST) -m "not slow"

test-all: test docs  ## 12 min | run all tests, with mutants, figures in their quick setting, and the site in a browser
	$(PYTEST) -m slow

test-kernels: $(VENV)/test  ## 30 min | run the numeric tests with every OpenBLAS kernel that the processor supports
	$(BIN)/python -m tests.kernels $(if $(THREADS),--threads $(THREADS)) $(KERNELS)

lint: $(VENV)/lint  ## 2 min | ruff, mypy and numpydoc
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/numpydoc lint $$(git ls-files 'kfac_ref/*.py')

dist: $(VENV)/dist  ## 3 min | build the sdist and the wheel, check them, and use the wheel in a fresh environment outside the clone
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv $$folder/venv; \
	$$folder/venv/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl; \
	cd $$folder; \
	venv/bin/kfac-ref demo --quick --out demo; \
	venv/bin/kfac-ref vectors --copy vectors; \
	venv/bin/kfac-ref check vectors/categorical-tanh.json vectors/categorical-tanh.json

bench: $(VENV)/run  ## 5 min | time one step and its bare BLAS calls, all approximations, and other implementations if installed
	$(BIN)/python tests/bench/step.py
	$(BIN)/python tests/bench/family.py
	$(BIN)/python tests/bench/peers.py

# convergence.py draws its committed results; these two scripts take more than five minutes each.
LONG := figures/approximations.py figures/plateau.py
figures: $(VENV)/run  ## 5 min | draw the committed figures again
	for script in $(filter-out $(LONG),$(wildcard figures/*.py)); do $(BIN)/python $$script || exit 1; done

figures-paper: $(VENV)/run  ## 150 min | run the long comparisons again, in the folder figures-paper; resumable
	for script in figures/convergence.py $(LONG); do $(BIN)/python $$script --out figures-paper/$$(basename $$script .py) || exit 1; done

vectors: $(VENV)/test  ## 1 min | compute the test vectors again from the definitions, and print which bytes changed
	$(BIN)/python -m tests.vectors.make
	$(BIN)/python -m tests.vectors.flags

# torch without CUDA if its index can be reached; otherwise from the package index.
PEERS := .venv-peers
TORCH := https://download.pytorch.org/whl/cpu
$(PEERS)/peers: tests/peers/requirements.txt setup.cfg pyproject.toml | $(BIN)/python
	$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --retries 0 --timeout 10 $$(grep ^torch== tests/peers/requirements.txt) --index-url $(TORCH) 2>/dev/null || true
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/peers/requirements.txt --editable .
	@# Without its dependencies: they need an older NumPy, and nothing here uses them.
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dattri==0.3.0
	@touch $@

peers: $(PEERS)/peers  ## 15 min | compare other implementations with this one, in a separate venv (2 GB), and print a table
	KFAC_REF_REQUIRE=peers $(PEERS)/bin/python -m pytest tests/peers
	$(PEERS)/bin/python -m tests.peers.table

oracle-report: $(VENV)/test  ## 30 min | put every known mistake into every vector, and write what the diagnosis reports
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.oracle_report

handout: $(VENV)/run  ## 1 min | pack the exercises without solutions for students: kfac-exercises.zip
	$(BIN)/python tutorials/exercises/handout.py kfac-exercises.zip

docs: $(VENV)/docs  ## 3 min | build the site of the course in the folder site; it works without a network
	$(BIN)/python docs/build.py

notebooks: $(VENV)/docs  ## 1 min | write each tutorial and its answers as notebooks to the folder notebooks
	mkdir -p notebooks/answers
	for script in $(wildcard tutorials/[0-9]*.py tutorials/answers/*.py); do to=notebooks/$${script#tutorials/}; $(BIN)/jupytext --quiet --to ipynb --output $${to%.py}.ipynb $$script || exit 1; done
	sed -i 's#(\(answers/\|\.\./\)\([0-9a-z_]*\)\.py)#(\1\2.ipynb)#' notebooks/*.ipynb notebooks/answers/*.ipynb

mutants: $(VENV)/test  ## 20 min | break the package on purpose and print which tests notice
	$(BIN)/python -m tests.mutants

clean:  ## remove .venv, .venv-peers, the site, the notebooks and the files of the tools
	rm -rf $(VENV) $(PEERS) site notebooks build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
