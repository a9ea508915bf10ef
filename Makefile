# make demo    from nothing to the toy table and its report
# make test    the tests
# make kernels compile engine/logprobs.cu for GPUs from A100 to RTX 50 (needs nvcc), to see that it does: it is built on first use
# make gpu     on a machine with a GPU: the kernels' tests, the same under compute-sanitizer, and their speed
# All but kernels make .venv first.  With a GPU: make TORCH=torch demo

TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := .venv/bin
# Vectors of another width add up in another order: the tests of numerics run once more as on a CPU without any.
OTHER_CPU ?= default
NUMERICS := $(addprefix tests/test_,logprobs.py losses.py scoring.py sampler.py training.py)

demo: .venv/installed
	$(BIN)/python reproduce.py main --scale toy --jobs 2 --out runs/demo

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n logical --dist loadgroup
	ATEN_CPU_CAPABILITY=$(OTHER_CPU) $(BIN)/python -m pytest -n logical $(NUMERICS)

kernels:
	mkdir -p build
	nvcc -O3 -std=c++17 -shared -Xcompiler -fPIC,-fvisibility=hidden -Xptxas -warn-spills -Werror all-warnings \
		$(foreach sm,80 90 100 120,-gencode arch=compute_$(sm),code=sm_$(sm)) \
		-gencode arch=compute_120,code=compute_120 engine/logprobs.cu -o build/logprobs.so

gpu: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[bench]"
	$(BIN)/python -m pytest tests/test_kernels.py
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 $(BIN)/python -m pytest tests/test_kernels.py -k cuda
	compute-sanitizer --tool racecheck --error-exitcode 1 $(BIN)/python -m pytest tests/test_kernels.py -k cuda
	$(BIN)/python bench/cuda_kernels.py

# torch first and by itself: a bare `torch` brings gigabytes of CUDA to machines that have no GPU.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[report,test]"
	touch $@

clean:
	rm -rf .venv runs/demo runs/cells

.PHONY: demo test kernels gpu clean
