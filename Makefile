# The index of commands.
.PHONY: help develop check lint types test check-c bench-c fuzz bench pythons ci clean

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
	pytest

C_FLAGS = -O3 -Wall -Wextra -Icsrc
SANITIZE = -g -fsanitize=address,undefined -fno-sanitize-recover=undefined

check-c: build/check_kernels ## every kernel on every level against scalar, and the errors of elementary functions
	build/check_kernels

bench-c: build/check_kernels ## speed of every kernel on every level
	build/check_kernels --bench

build/check_kernels: csrc/*.[ch] tests/c/*.[ch]
	mkdir -p build
	$(CC) $(C_FLAGS) csrc/*.c tests/c/check_kernels.c -lm -o $@

fuzz: ## a million damaged model files under sanitizers (the tests make a hundred thousand)
	mkdir -p build
	$(CC) $(C_FLAGS) $(SANITIZE) -DFUZZ_MAIN csrc/*.c tests/c/fuzz_format.c -lm -o build/fuzz_format
	build/fuzz_format --count 1000000

bench: ## speed against the other engines
	python benchmarks/compare.py

pythons: ## install from the source tree and generate, on every supported Python found
	.ci/pythons

ci: ## everything, in fresh environments
	.ci/run

clean: ## remove what was built
	rm -rf build dist *.egg-info fastlm/*.so
