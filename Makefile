# One environment in .venv; the two commands of the README are make demo and make test.
# TORCH_INDEX=URL takes torch from another wheel index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: demo setup test lint slow docs clean
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "labo needs Python 3.10 or newer; name one with PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH_FROM) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/labo compare digits --label-noise 0.2,symmetric \
		--methods "none,label_smoothing,elr,labo,labo[prior=memory]" \
		--seeds 8 --settings-per-method 3 --tuning-seeds 2 --output runs/demo
	$(BIN)/labo labels "runs/demo/digits/labo[prior=memory]/0" --top 10
	$(BIN)/labo report runs/demo > runs/demo/verdict.txt
	@tail -n 7 runs/demo/verdict.txt

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	@if [ -x $(BIN)/lint-imports ]; then $(BIN)/lint-imports --no-cache; \
	else echo "lint-imports is left out: it needs Python 3.11"; fi

test: lint
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/pytest -q -n 2 -m "not slow"

# The pages as a site, in site/; a link that leads nowhere is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "Open site/index.html; with search: $(BIN)/mkdocs serve."

slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m slow

clean:
	rm -rf $(VENV) build dist site
