# Everything runs in .venv, which each target sets up when it is missing or out of date.
PYTHON ?= python3
# what computes: Metal needs no extra; on Linux CUDA where there is an NVIDIA GPU, else the CPU
EXTRA := $(if $(filter Linux,$(shell uname -s)),$(if $(shell command -v nvidia-smi),cuda,cpu),)
VENV := .venv
CLIENTS := $(CURDIR)/.clients
BIN := $(VENV)/bin
comma := ,

.PHONY: demo test check test-clients test-upstream clean

demo: $(VENV)/.installed  ## Ask the bundled model a question with 40% of the memory it needs.
	$(BIN)/mlx-flash generate --memory 40% -n 160 -p "What does shutil.copytree do?"

test: $(VENV)/.dev  ## Run all tests.
	$(BIN)/python -m pytest

check: $(VENV)/.dev  ## Check format, lint, types and the direction of imports.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-clients: $(VENV)/.dev $(CLIENTS)/.installed  ## Run the official clients of each API against the server.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[clients]'
	MLX_FLASH_CLAUDE_CODE=$$(find $(CLIENTS) -type f -name claude -perm -u+x | head -1) \
	MLX_FLASH_CODEX=$$(find $(CLIENTS) -type f -name codex -perm -u+x | head -1) \
	MLX_FLASH_OPENCODE=$(CLIENTS)/node_modules/.bin/opencode MLX_FLASH_AI_SDK=$(CLIENTS) \
	$(BIN)/python -m pytest -n 0 -rs tests/clients

$(CLIENTS)/.installed:
	npm install --silent --no-audit --no-fund --prefix $(CLIENTS) @anthropic-ai/claude-code \
		@openai/codex opencode-ai ai @ai-sdk/openai-compatible
	@touch $@

test-upstream: $(VENV)/.dev  ## Run mlx-lm's own model tests with and without streaming.
	$(BIN)/python tests/upstream/run.py

clean:  ## Remove everything that make made.
	rm -rf $(VENV) .upstream $(CLIENTS)

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.$(if $(EXTRA),[$(EXTRA)])'
	@touch $@

$(VENV)/.dev: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev$(if $(EXTRA),$(comma)$(EXTRA))]'
	@touch $@
