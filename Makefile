# Everything that a build, a test run or a release needs. `make help` lists the targets.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help lib install header install-deps sdk fetch build demo cross cross-deps deb test test-default test-all check fmt-check clippy \
        doc deny fuzz test-cross test-qemu test-gpu test-long headers-check advisories coverage full-size bench bench-rows quantization-table clean distclean

CARGO ?= cargo
PYTHON ?= python3

# The folder that `make sdk` fills; absolute, because build scripts run elsewhere.
export TRTVLM_SDK := $(abspath $(or $(TRTVLM_SDK),.sdk))
# Ours before the system's, so that a system header cannot change what is built here.
export TENSORRT_INCLUDE_DIR ?= $(TRTVLM_SDK)/tensorrt-rtx/include:$(TRTVLM_SDK)/tensorrt-11/include:$(TRTVLM_SDK)/cuda/include

BIN = $(or $(CARGO_TARGET_DIR),target)/release/trtvlm
LIB = $(or $(CARGO_TARGET_DIR),target)/flight/libtrtvlm.a
# Of the library: `tensorrt`, or nothing.
FEATURES ?= tensorrt
# System libraries behind it.
LIBS = $(if $(findstring tensorrt,$(1)),-lstdc++) -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
PREFIX ?= /usr/local
# For the Jetson: with TensorRT where its headers were named, since those of the SDK are not the Jetson's.
CROSS_FEATURES ?= $(if $(filter file,$(origin TENSORRT_INCLUDE_DIR)),,tensorrt)
CROSS_DIR = $(or $(CARGO_TARGET_DIR),target)/aarch64-unknown-linux-gnu
CROSS_BIN = $(CROSS_DIR)/release/trtvlm
CROSS_LIB = $(CROSS_DIR)/flight/libtrtvlm.a
MODEL = onnx/uav-tiny
IMAGE = calibration/images/0024.png
ENGINES = engines/uav-tiny-fp16-sm86
# After `fetch` nothing may reach for the network.
OFFLINE = CARGO_NET_OFFLINE=true

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r t d; do printf '  %-14s %s\n' "$$t" "$$d"; done

install-deps: ## system packages that are missing (Debian, Ubuntu; root or sudo)
	@tools/deps.sh

sdk: ## TensorRT-RTX, headers, NVRTC and libclang into .sdk/ (pinned, checked)
	@tools/sdk.sh

fetch: ## Rust dependencies, as locked
	$(CARGO) fetch --locked

build: install-deps sdk fetch ## the release binary with TensorRT
	$(OFFLINE) $(CARGO) build --locked --release --features tensorrt

lib: install-deps sdk fetch ## libtrtvlm.a for C and C++ programs, size-trimmed (FEATURES= for the CPU engine alone)
	$(OFFLINE) $(CARGO) rustc --locked --lib --crate-type staticlib --profile flight --no-default-features --features "$(FEATURES)"

install: lib ## the library, its headers, CMake and pkg-config files into PREFIX
	@tools/install.sh "$(LIB)" "$(abspath $(PREFIX))" "$(call LIBS,$(FEATURES))"

header: fetch ## write include/trtvlm.h anew after a change in src/capi
	TRTVLM_BLESS=1 $(OFFLINE) $(CARGO) test --locked --all-features --test header

demo: build ## build TensorRT engines for the demo model, then ask three questions
	TENSORRT_LIB_DIR=$(TRTVLM_SDK)/tensorrt-rtx/lib:$(TRTVLM_SDK)/cuda/lib $(BIN) build $(MODEL) --target sm86 --precision fp16 --out $(ENGINES) --force
	@echo; echo "Three questions about $(IMAGE), answered on the CPU:"
	@for q in "describe the scene" "find the blue boat" "how many trees are there"; do \
	    echo; echo "> $$q"; $(BIN) run $(MODEL) --image $(IMAGE) --prompt "$$q" || exit 1; \
	done
	@echo; echo "binary:  $(BIN)"; echo "model:   $(MODEL)"; echo "engines: $(ENGINES)"
	@cd $(ENGINES) && find . -type f | sort | xargs ls -l | awk '{ printf "  %10d  %s\n", $$5, substr($$9, 3) }'

cross-deps:
	@tools/deps.sh cross

cross: cross-deps $(if $(CROSS_FEATURES),sdk) fetch ## program and library for the Jetson (TENSORRT_INCLUDE_DIR: JetPack's headers)
	$(OFFLINE) tools/cross.sh $(CARGO) build --locked --release --bin trtvlm --features "$(CROSS_FEATURES)"
	$(OFFLINE) tools/cross.sh $(CARGO) rustc --locked --lib --crate-type staticlib --profile flight --no-default-features --features "$(CROSS_FEATURES)"
	@tools/abi.sh $(CROSS_BIN) $(CROSS_LIB)
	@$(if $(CROSS_FEATURES),,echo "cross: without TensorRT; set TENSORRT_INCLUDE_DIR to JetPack's headers (docs/jetson.md)")

deb: cross ## a Debian package of both for the Jetson
	@tools/deb.sh $(CROSS_BIN) $(CROSS_LIB) "$(CROSS_FEATURES)" "$(call LIBS,$(CROSS_FEATURES))"

test: install-deps sdk fetch check test-all test-default ## set up everything and run all checks and tests

test-all:
	$(OFFLINE) $(CARGO) test --locked --all-features --no-fail-fast

# What is another program without TensorRT: the library, and the commands that name it.
test-default:
	$(OFFLINE) $(CARGO) test --locked --no-fail-fast --lib --bins --test build --test cli --test portable --test run

check: fmt-check clippy doc deny ## formatting, lints, documentation, licences

fmt-check:
	$(CARGO) fmt --all --check

clippy:
	$(OFFLINE) $(CARGO) clippy --locked --all-features --all-targets -- -D warnings
	$(OFFLINE) $(CARGO) clippy --locked --all-targets -- -D warnings
	$(OFFLINE) $(CARGO) clippy --locked --no-default-features --lib -- -D warnings

doc:
	$(OFFLINE) RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --all-features

deny: ## licences, sources, duplicates (needs cargo-deny; advisories: `make advisories`)
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	    $(CARGO) deny --offline --all-features --log-level error check licenses bans sources; \
	else echo "deny: cargo-deny is not installed, skipped (cargo install --locked cargo-deny)"; fi

test-gpu: install-deps sdk fetch ## tests that need a GPU, and again under compute-sanitizer where there is one
	$(OFFLINE) $(CARGO) test --locked --all-features -- --ignored gpu
	@if command -v compute-sanitizer >/dev/null 2>&1; then \
	    set -x; $(OFFLINE) CARGO_TARGET_$$(rustc -vV | sed -n 's/host: //p' | tr 'a-z-' 'A-Z_')_RUNNER="compute-sanitizer --error-exitcode 1" \
	        $(CARGO) test --locked --all-features -- --ignored gpu --test-threads 1; \
	else echo "test-gpu: no compute-sanitizer, skipped"; fi

test-cross: deb ## the Jetson's package, installed, used and removed, under qemu-user
	tests/cross/run.sh $(CROSS_BIN) $(CROSS_LIB) $(CROSS_DIR)/release/debian/*.deb

test-qemu: cross-deps sdk fetch ## the unit tests on aarch64, under qemu-user
	$(OFFLINE) tools/cross.sh $(CARGO) test --locked --all-features --lib

test-long: test test-cross test-qemu advisories coverage full-size ## what needs the network, extra tools or hours; run by hand
	$(OFFLINE) $(CARGO) test --locked --all-features --no-fail-fast -- --ignored long

fuzz: ## every parser and C entry under libFuzzer, FUZZ_SECONDS for each (TARGETS="onnx capi")
	tools/fuzz.sh $(TARGETS)

advisories: ## known vulnerabilities in dependencies (network, cargo-deny)
	$(CARGO) deny --all-features check advisories

headers-check: sdk fetch ## compile the shim, warnings as errors, with each folder of headers in TENSORRT_INCLUDE_DIR
	$(OFFLINE) tools/headers.sh

coverage: sdk fetch ## line coverage of all tests (cargo install --locked llvm_profparser)
	tools/coverage.sh

full-size: build ## FastVLM-0.5B and SmolVLM-256M with random weights: build times and peak memory (Python, 8 GB, an hour)
	$(PYTHON) tools/full_size.py "$(BIN)"

bench: build ## side by side with onnxruntime on the demo model (Python)
	$(PYTHON) benches/peers/compare.py --trtvlm "$(BIN)" $(MODEL) --image $(IMAGE) --prompt "describe the scene"

quantization-table: build ## accuracy of every precision on the demo model, as a table (DATA: items, by default the samples)
	$(PYTHON) tools/quantization_table.py "$(BIN)" $(MODEL) --data $(or $(DATA),calibration/items.jsonl) --calibration calibration

bench-rows: fetch ## decoder passes by number of rows beside onnxruntime: DECODERS="fp32.onnx int8.onnx" (Python)
	$(PYTHON) benches/peers/rows.py $(DECODERS)

clean: ## build outputs
	$(CARGO) clean
	rm -rf $(ENGINES)

distclean: clean ## and everything fetched or made
	rm -rf .sdk .zoo
