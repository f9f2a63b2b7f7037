# The index of commands.
.PHONY: help develop check lint types test check-c check-screens check-transformers check-arm bench-c fuzz tutorials bench bench-full pythons ci clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

develop: ## install everything in place
	pip install -e ".[test,bench]"

check: lint types test ## what CI runs, in this environment

lint: ## style
	ruff check .
	ruff format --check .
	clang-format --dry-run --Werror csrc/*.[ch] tests/c/*.[ch] benchmarks/*.c

types: ## types, and that the stub is true
	mypy
	cd / && python -m mypy.stubtest fastlm._engine

test: ## all tests
	pytest -n auto --dist worksteal

C_FLAGS = -O3 -Wall -Wextra -Icsrc
SANITIZE = -g -fsanitize=address,undefined -fno-sanitize-recover=undefined

check-c: build/check_kernels ## every kernel on every level against scalar, and the errors of elementary functions
	build/check_kernels

check-screens: ## a million tokens with all controls, with and without a screen of the output matrix
	FASTLM_SCREEN_TOKENS=1000000 pytest tests/test_screening.py -k every_control

check-transformers: ## the definitions of sampling controls against Hugging Face's
	pip install -q transformers torch
	pytest tests/test_controls_transformers.py

check-arm: ## a sample of check-c on an emulated 64-bit ARM (CONTRIBUTING.md: what to install)
	mkdir -p build
	aarch64-linux-gnu-gcc $(C_FLAGS) csrc/*.c tests/c/check_kernels.c -lm -pthread -o build/check_kernels_arm
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/check_kernels_arm --quick

bench-c: build/check_kernels ## speed of every kernel on every level
	build/check_kernels --bench

build/check_kernels: csrc/*.[ch] tests/c/*.[ch]
	mkdir -p build
	$(CC) $(C_FLAGS) csrc/*.c tests/c/check_kernels.c -lm -pthread -o $@

fuzz: ## a million damaged model files under sanitizers (the tests make a hundred thousand)
	mkdir -p build
	$(CC) $(C_FLAGS) $(SANITIZE) -DFUZZ_MAIN csrc/*.c tests/c/fuzz_format.c -lm -pthread -o build/fuzz_format
	build/fuzz_format --count 1000000

tutorials: ## the programs of docs/tutorials, whole, in build/tutorials: about four minutes
	mkdir -p build/tutorials
	python docs/tutorials/when_wishes_conflict.py build/tutorials
	python docs/tutorials/is_my_model_overfitting.py build/tutorials

bench: ## speed against the other engines, two workloads, and the report: about ten minutes
	python benchmarks/report.py --quick

bench-full: ## everything that the report can show: about an hour, on a quiet machine
	python benchmarks/report.py --resume

pythons: ## install from the source tree and generate, on every supported Python found
	.ci/pythons

ci: ## everything, in fresh environments
	.ci/run

clean: ## remove what was built
	rm -rf build dist *.egg-info fastlm/*.so
