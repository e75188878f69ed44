# `make conformance` sets up and runs the main job, `make test` sets up and runs the tests.
# Everything lands in $(VENV); nothing needs root or touches the system's Python.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
ROOTS := spec reference conformance fuzz
SOURCES := pyproject.toml setup.py README.md $(shell find $(ROOTS) -type f \
	-not -path '*/tests/*' -not -path '*/__pycache__/*')
PURE := PYTHONPATH=spec:reference:conformance:fuzz PYTHONDONTWRITEBYTECODE=1

.PHONY: help conformance test fuzz lint bench docs vectors guests clean
help:
	@echo 'make conformance  set up, hold grammar and reference against all vectors, print the verdict'
	@echo 'make test         set up, run all tests on the compiled and on the pure Python build'
	@echo 'make fuzz         set up, fuzz reference, grammar and the QEMUs of SAVEVM_QEMUS: the same each time'
	@echo 'make lint         ruff, mypy --strict, layering'
	@echo 'make bench        speed of save, load, verify and extract against cat and QEMU'
	@echo 'make vectors      generate the conformance vectors again, and pack them: dist/savevm-vectors.tar.gz'
	@echo 'make guests       build the RISC-V programs of the package again (Debian: gcc-riscv64-unknown-elf,'
	@echo '                  gcc-riscv64-linux-gnu)'
	@echo 'make docs         the documentation, in docs/_build/html'

$(VENV)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@touch $@

# The sources are copied before the build so that no compiled module is left beside them.
$(VENV)/installed: $(VENV)/pip $(SOURCES)
	rm -rf $(VENV)/source && mkdir -p $(VENV)/source
	cp -r pyproject.toml setup.py README.md LICENSE $(ROOTS) $(VENV)/source/
	$(BIN)/pip install --quiet --force-reinstall --no-deps $(VENV)/source
	$(BIN)/pip install --quiet '$(VENV)/source[lint]'
	rm -rf $(VENV)/source
	@$(BIN)/savevm --version
	@touch $@

conformance: $(VENV)/installed
	$(BIN)/savevm conformance run -j $(JOBS) $(if $(SAVEVM_STREAMS),--streams $(SAVEVM_STREAMS)) $(ARGS)

test: $(VENV)/installed
	SAVEVM_BUILD=$${SAVEVM_BUILD:-any} $(BIN)/python -m pytest -n $(JOBS) $(ARGS)
	$(PURE) SAVEVM_BUILD=pure $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

fuzz: $(VENV)/installed
	for target in reference spec $(addprefix qemu:,$(subst :, ,$(SAVEVM_QEMUS))); do \
		$(BIN)/savevm fuzz $$target --profile ci $(ARGS) || exit; \
	done

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(foreach root,$(ROOTS),$(wildcard $(root)/savevm*)) tools
	$(BIN)/python tools/layering.py

bench: $(VENV)/installed
	$(BIN)/python reference/bench/bench.py $(ARGS)
	$(BIN)/python reference/bench/machine.py
	$(BIN)/python reference/bench/migrate.py
	$(BIN)/python fuzz/bench/throughput.py

vectors: $(VENV)/installed
	$(PURE) $(BIN)/python -m savevm.cli conformance generate
	$(BIN)/python tools/vectors_archive.py dist/savevm-vectors.tar.gz

guests:
	$(MAKE) -B -C reference/guests

docs: $(VENV)/installed
	$(BIN)/pip install --quiet 'sphinx>=7.3'
	$(BIN)/python -m sphinx -n -W -b html docs docs/_build/html

clean:
	rm -rf $(VENV) docs/_build build *.egg-info
