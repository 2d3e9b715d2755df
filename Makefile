# `make demo` and `make test` set up all they need in .venv; a second call is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready

# Two workers of one thread each: the tests are many and small.
WORKERS ?= 2

# For `make test-torch`: the oldest torch that is supported, and the newest that pip finds at the
# time; others by version, like TORCH='2.9.1 2.11.0'. Each has an environment of its own.
TORCH ?= 2.6.0 newest

# For `make dist`: where the wheel has to work, by name or path; the last has the laboratory too.
PYTHONS ?= python3.10 python3.13

# For `make cost-cuda`: where the figures go, and the commit where git cannot tell.
CUDA_RESULTS ?= results/cost/cuda
COMMIT ?= $(shell git rev-parse --short HEAD 2>/dev/null)

.PHONY: demo test test-torch test-cuda cost-cuda lint format tables docs dist clean

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lab,test]'
	touch $(READY)

demo: $(READY)
	$(BIN)/sgdph compare --dataset digits --epochs 8 --lr 0.1 --weight-decay 5e-3 --optimizers sgdm,sgdph --seeds 0-2 --out runs/demo --overwrite

test: $(READY)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

# The core's tests, without the laboratory and the frameworks, under other torches than .venv's.
test-torch: $(addprefix test-torch-,$(TORCH))

test-torch-%:
	test -x .venv-torch-$*/bin/python || $(PYTHON) -m venv .venv-torch-$*
	.venv-torch-$*/bin/python -m pip install --quiet --disable-pip-version-check --editable . \
		$(if $(filter newest,$*),--upgrade torch,'torch==$*') \
		numpy onnx onnxscript 'pytest>=8.0,<9.2' 'pytest-xdist>=3.6'
	.venv-torch-$*/bin/python -c 'import torch; print("torch", torch.__version__)'
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 .venv-torch-$*/bin/python -m pytest -n $(WORKERS) --dist loadgroup \
		-k 'not frameworks.md and not transformers.md' --ignore tests/lab --ignore tests/integrations --ignore tests/test_examples.py

# On a machine with an NVIDIA GPU, by the torch and the pytest that $(PYTHON) has there.
test-cuda:
	PYTHONPATH=src:tests $(PYTHON) -m pytest -m cuda tests/cuda

# What a step costs there, and a run of the paper's scale, each even where the other fails. Then: make tables.
cost-cuda:
	@failed=0; set -x; \
	PYTHONPATH=src $(PYTHON) benchmarks/cost_cuda.py --out $(CUDA_RESULTS) $(if $(COMMIT),--commit $(COMMIT)) || failed=1; \
	PYTHONPATH=src $(PYTHON) benchmarks/paper_cell.py --out $(CUDA_RESULTS)/paper-cell.json $(if $(COMMIT),--commit $(COMMIT)) || failed=1; \
	exit $$failed

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tables of figures in README, docs and results, out of the files in results.
tables: $(READY)
	$(BIN)/python benchmarks/write_tables.py

$(DOCS_READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $(DOCS_READY)

# A link or a name that leads nowhere ends the build (not with --quiet, which hides it from --strict).
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "The documentation lies in $(CURDIR)/site/index.html; it opens without a network."

# Builds both packages, checks them, and installs the wheel under each Python to try it there.
dist:
	test -x .venv-dist/bin/python || $(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check 'build>=1.2' 'twine>=6.1'
	rm -rf dist
	.venv-dist/bin/python -m build
	.venv-dist/bin/twine check --strict dist/*
	.venv-dist/bin/python tests/release/contents.py dist
	env -u PYTHONPATH sh tests/release/install.sh $(PYTHONS)

clean:
	rm -rf $(VENV) .venv-torch-* .venv-dist .venv-dist-* build dist site .pytest_cache .mypy_cache .ruff_cache
