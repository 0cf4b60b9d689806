# `make demo` runs the main job and `make test` passes the tests; both set everything up first, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo cases gallery docs test coverage lower-bounds clients huggingface check clean

help:
	@echo "make demo    train with and without mitigations, print what it changed (sets up $(VENV) first)"
	@echo "make test    lint, type check and test (sets up $(VENV) first)"
	@echo "make coverage  the tests, and which lines none of them runs (longer)"
	@echo "make cases   every case study over five seeds, recorded (under an hour on two cores)"
	@echo "make gallery examples/README.md from the recorded results"
	@echo "make docs    the site, in site/: pages, gallery, reference (a minute at most)"
	@echo "make clients trains models of published packages, watched and not (sets up .venv-clients; gigabytes, an hour)"
	@echo "make check   format, lint and type check only"
	@echo "make clean   remove $(VENV) and what runs left behind"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "==> setting up $(VENV) (once; a few minutes with a slow network)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "==> installing torch first: a later, freer choice would bring gigabytes of CUDA packages"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	@echo "==> installing lightning-gradguard with what its examples and tests need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs,examples]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

cases: $(STAMP)
	@$(BIN)/python examples/cases.py --record examples/results

gallery: $(STAMP)
	@$(BIN)/python examples/harness/gallery.py

docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "==> site/index.html; to read it with its search: $(BIN)/python -m http.server --directory site"

test: $(STAMP) browser
	@echo "==> ruff, mypy"
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@echo "==> pytest, on all cores"
	@$(BIN)/python -m pytest -n auto --dist loadfile

coverage: $(STAMP) browser
	@$(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term

lower-bounds: $(STAMP)
	@echo "==> the core rows again, with lightning and torchmetrics at their lower bounds"
	@sh tests/lower_bounds.sh

# Published packages with models of their own, in an environment of their own; torch first, as above.
CLIENTS := .venv-clients

$(CLIENTS)/installed: benchmarks/clients/requirements.txt constraints.txt
	@echo "==> setting up $(CLIENTS) (once; two gigabytes)"
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	@$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt) -r $<
	@touch $@

clients: $(CLIENTS)/installed
	@nice -n 10 $(CLIENTS)/bin/python -m benchmarks.clients --record

huggingface: $(STAMP)
	@echo "==> the transformers callback, against transformers and accelerate in an environment of their own"
	@sh tests/huggingface.sh

check: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# The tab is tested in a real browser. On Debian as root it is installed; elsewhere it must be there.
.PHONY: browser
browser:
	@if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then \
	  if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    echo "==> installing chromium and chromedriver for the browser tests"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null; \
	  else \
	    echo "==> chromium and chromedriver are missing: the browser tests will fail; install them with your package manager"; \
	  fi; \
	fi

clean:
	rm -rf $(VENV) .venv-lower .venv-clients .venv-huggingface runs site .pytest_cache .mypy_cache .ruff_cache .coverage
