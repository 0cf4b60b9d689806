# Two commands: `make demo` runs the main job, `make test` passes the tests. Both set everything up first.
VENV    := .venv
PYTHON  ?= python3
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
EXTRAS  := dev,examples
