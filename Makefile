# Everything is set up by the targets themselves: only Python 3.11 or newer is assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := $(VENV)/.packages
SOLVERS := $(VENV)/.solvers
BROWSER := $(VENV)/.browser
DOCS := $(VENV)/.docs
FLOORS := .venv-floors
PEERS := .venv-peers

.PHONY: help demo demo-int8 test test-kernels floors prove trust zoo bench peers fuzz golden pictures docs check fix samples clean

help:
	@echo "make demo     fuse the trained sample and show the result"
	@echo "make demo-int8  take the sample to 8 bits, and a twin whose channels range widely"
	@echo "make test     run the tests"
	@echo "make floors   run the tests with the lowest versions that pyproject.toml allows, in $(FLOORS)"
	@echo "make test-kernels  run those that compare numbers as on other processors: without AVX,"
	@echo "              with AVX2 alone, without oneDNN, with two threads (about ten minutes)"
	@echo "make prove    prove the geometry for all integers, with two solvers, and write docs/proofs.md"
	@echo "make trust    measure every promise of SECURITY.md (up to 30 minutes)"
	@echo "make zoo      try published models, and write docs/models.md and docs/verdicts.md; only those"
	@echo "              without a result, unless ZOO=--again (about 25 minutes)"
	@echo "make bench    measure what acfuse takes and gives, beside its targets (under ten minutes)"
	@echo "make peers    install the other tools that make bench tries, in .venv-peers"
	@echo "make golden   write the pages and transcripts again that tests hold to the program"
	@echo "make pictures  draw the trained sample again, in docs/img/ (three minutes)"
	@echo "make docs     build the documentation as a site, in site/; a broken link is an error"
	@echo "make fuzz     draw files that are nearly right by the ten thousand (about ten minutes)"
	@echo "make check    lint, types and import contracts"
	@echo "make fix      format, and mend what ruff can mend"
	@echo "make samples  train the sample networks again"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Networks of others, for tests/packages. Those tests are skipped where these cannot be had.
$(PACKAGES): $(READY) tests/packages/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement tests/packages/requirements.txt \
		&& touch $@ || echo "tests/packages will be skipped: its packages could not be installed"

# What drives a browser. The browser itself is the system's: `apt-get install chromium`.
$(BROWSER): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]' \
		&& touch $@ || echo "tests/reports/test_browser.py will be skipped: no playwright"

# What builds the documentation, and runs its notebook.
$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs,notebook]' \
		&& touch $@ || echo "tests/house/test_site.py will be skipped: no mkdocs"

demo: $(READY)
	@sh sample_models/demo.sh $(abspath $(BIN))

demo-int8: $(READY)
	@sh sample_models/demo_int8.sh $(abspath $(BIN))

test: $(READY) $(PACKAGES) $(BROWSER) $(DOCS)
	$(BIN)/python -m pytest --numprocesses 2

# Wheels of the lowest numpy exist up to Python 3.12. Of an old torch, often only a CUDA build is to
# be had: several gigabytes.
$(FLOORS)/.ready: pyproject.toml constraints.txt .ci/floors.py
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip install --quiet --constraint constraints.txt \
		pytest pytest-xdist hypothesis
	$(FLOORS)/bin/python .ci/floors.py > $(FLOORS)/constraints.txt
	$(FLOORS)/bin/python -m pip install --quiet --constraint $(FLOORS)/constraints.txt \
		--editable '.[hdf5,samples]'
	touch $@

floors: $(FLOORS)/.ready
	$(FLOORS)/bin/python -m pytest --numprocesses 2

# Every test whose outcome could depend on how a processor rounds: in which order it adds, and which
# kernels torch chooses for it.
NUMERIC := tests/algebra tests/families tests/files tests/graph tests/house/test_bounds.py \
	tests/packages tests/patterns tests/proof tests/sources
KERNELS := $(BIN)/python -m pytest --quiet $(NUMERIC) --numprocesses

test-kernels: $(READY) $(PACKAGES)
	ATEN_CPU_CAPABILITY=default $(KERNELS) 2
	ATEN_CPU_CAPABILITY=avx2 $(KERNELS) 2
	ACFUSE_TEST_ONEDNN=0 $(KERNELS) 2
	ACFUSE_TEST_THREADS=2 $(KERNELS) 1

$(SOLVERS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[proof]'
	touch $@

prove: $(READY) $(SOLVERS)
	$(BIN)/python -m tests.obligations

trust: $(READY)
	$(BIN)/python -m tests.trust

zoo: $(READY) $(PACKAGES)
	$(BIN)/python -m benchmarks.zoo $(ZOO)

bench: $(READY) $(PACKAGES)
	$(BIN)/python -m benchmarks $(BENCH)

# In a Python of their own, as they may want other versions of what acfuse needs.
$(PEERS)/.ready: pyproject.toml constraints.txt benchmarks/peers.txt tests/packages/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	$(PEERS)/bin/python -m pip install --quiet --no-deps --requirement tests/packages/requirements.txt
	grep == benchmarks/peers.txt | while read -r tool; do \
		$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt "$$tool" \
			|| echo "$$tool will be skipped: it could not be installed"; \
		done
	touch $@

peers: $(PEERS)/.ready

# Pages and transcripts that tests hold to what the program says. Read what changed before a commit.
golden: $(READY)
	ACFUSE_WRITE_CASES=1 $(BIN)/python -m pytest --quiet tests/families/test_table.py \
		tests/cli/test_transcripts.py || true
	git --no-pager diff --stat -- docs tests/cli/cases

pictures: $(READY)
	$(BIN)/python -m benchmarks.pictures
	$(BIN)/python -m benchmarks.int8 --write

docs: $(READY) $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# What it finds lies in tests/trust/finds afterwards, and is tried by make test from then on.
fuzz: $(READY)
	ACFUSE_FUZZ=1 $(BIN)/python -m pytest tests/trust/test_fuzz.py --numprocesses 2 \
		--hypothesis-profile fuzz

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

samples: $(READY)
	$(BIN)/python sample_models/train.py

clean:
	rm -rf $(VENV) $(FLOORS) $(PEERS) build site .demo .demo-int8 .pytest_cache .mypy_cache .ruff_cache .hypothesis
