# Two commands on a fresh machine with Python 3.11+ (with venv) and make: `make demo` and `make test`.
# Each makes its own environment in .venv first. `make TORCH=... demo` takes another build of torch: a version, a wheel or an address.
PYTHON ?= python3
VENV ?= .venv
TORCH ?=
POCKET ?= runs/pocket/model

BIN := $(VENV)/bin
INSTALL = PYTHON="$(PYTHON)" TORCH="$(TORCH)" scripts/install.sh "$(VENV)"
PEERS := transformers vllm llama_cpp
MORE_PEERS := ik_llama_cpp openvino

.PHONY: help demo test peers test-peers lint docs bench bench-serve clean
help:
	@echo "make demo    the tour: train the pocket system through every stage, chat with it, serve it"
	@echo "make test    lint, types, floors, tests"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make docs    write the generated pages again"
	@echo "make bench   speed of training beside transformers, and of reading chats (a quarter of an hour on 2 cores)"
	@echo "make bench-serve   speed of serving beside five other engines (two hours on 2 cores; 8 GB of environments)"
	@echo "make peers   environments of vLLM, llama.cpp and transformers in .peers (about 4 GB)"
	@echo "make test-peers   do they compute what we compute? POCKET=FOLDER names a trained pocket model"
	@echo "make clean   remove caches and builds; runs/, .peers and $(VENV) stay"

demo: $(VENV)/.installed-serve
	$(BIN)/moesaic demo

test: lint
	$(BIN)/python -m pytest

peers: $(PEERS:%=.peers/%/.installed)

test-peers: peers $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/peers --pocket "$(POCKET)"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	$(BIN)/python -m moesaic.recipe.docs
	$(BIN)/python scripts/description.py
	$(BIN)/python scripts/outputs.py
	$(BIN)/python scripts/pictures.py

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/train_vs_transformers.py --compile
	$(BIN)/python benchmarks/chat_rows.py

bench-serve: $(PEERS:%=.peers/%/.installed) $(MORE_PEERS:%=.peers/%/.installed) $(VENV)/.installed-dev
	$(BIN)/python benchmarks/serve_scheduler.py
	$(BIN)/python benchmarks/serve.py

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './.peers/*' -prune -exec rm -rf {} +

# A stamp says that these extras were installed for this pyproject.toml.
$(VENV)/.installed-%: pyproject.toml scripts/install.sh scripts/environment.sh
	$(INSTALL) $*
	@touch $@

# One environment for each peer, made anew when its list changes.
.peers/%/.installed: scripts/peers/%.txt scripts/peers.sh scripts/environment.sh
	PYTHON="$(PYTHON)" TORCH="$(TORCH)" scripts/peers.sh .peers/$* $<
	@touch $@
