# make demo    from nothing to the toy table and its report
# make test    the tests
# Both make .venv first.  With a GPU: make TORCH=torch demo

TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/installed
	$(BIN)/python reproduce.py main --scale toy --out runs/demo

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

# torch first and by itself: a bare `torch` brings gigabytes of CUDA to machines that have no GPU.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[report,test]"
	touch $@

clean:
	rm -rf .venv runs/demo

.PHONY: demo test clean
