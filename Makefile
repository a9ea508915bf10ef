# make demo    from nothing to the toy table and its report
# make test    the tests
# make newest  the tests with the newest release of everything, in .venv-newest
# make lock    the versions that are installed now become those of requirements.lock
# make kernels compile engine/logprobs.cu for GPUs from A100 to RTX 50 (needs nvcc), to see that it does: it is built on first use
# make gpu     on a machine with a GPU: the kernels' tests, the same under compute-sanitizer, and their speed
# demo, test and gpu make .venv first, with the exact versions of requirements.lock.  Another torch: make TORCH=torch demo

PYTHON ?= python3
VENV := .venv
LOCK := requirements.lock
TORCH ?= $(shell grep '^torch==' $(LOCK))
BIN := $(VENV)/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check
# Vectors of another width add up in another order: the tests of numerics run once more as on a CPU without any.
OTHER_CPU ?= default
NUMERICS := $(addprefix tests/test_,logprobs.py losses.py scoring.py sampler.py training.py)

demo: $(VENV)/installed
	$(BIN)/python reproduce.py main --scale toy --jobs 2 --out runs/demo

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n logical --dist loadgroup
	ATEN_CPU_CAPABILITY=$(OTHER_CPU) $(BIN)/python -m pytest -n logical $(NUMERICS)

newest:
	rm -rf .venv-newest
	$(MAKE) VENV=.venv-newest LOCK= TORCH=torch test

lock: $(VENV)/installed
	$(BIN)/pip freeze --exclude-editable | grep -v -E '^(nvidia|cuda|triton)' | sed 's/+.*//' > requirements.lock

kernels:
	mkdir -p build
	nvcc -O3 -std=c++17 -shared -Xcompiler -fPIC,-fvisibility=hidden -Xptxas -warn-spills -Werror all-warnings \
		$(foreach sm,80 90 100 120,-gencode arch=compute_$(sm),code=sm_$(sm)) \
		-gencode arch=compute_120,code=compute_120 engine/logprobs.cu -o build/logprobs.so

gpu: $(VENV)/installed
	$(PIP) install --editable ".[bench]"
	$(BIN)/python -m pytest tests/test_kernels.py
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 $(BIN)/python -m pytest tests/test_kernels.py -k cuda
	compute-sanitizer --tool racecheck --error-exitcode 1 $(BIN)/python -m pytest tests/test_kernels.py -k cuda
	$(BIN)/python bench/cuda_kernels.py

# `make TORCH=...` exchanges the line of torch: a bare `torch` brings gigabytes of CUDA to machines that have no GPU.
$(VENV)/installed: pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
ifdef LOCK
	grep -v '^torch==' $(LOCK) > $(VENV)/others
	$(PIP) install "$(TORCH)" --requirement $(VENV)/others
else
	$(PIP) install "$(TORCH)" --editable ".[report,test]"
endif
	touch $@

clean:
	rm -rf .venv .venv-newest runs/demo runs/cells

.PHONY: demo test newest lock kernels gpu clean
