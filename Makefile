# What a change is held to. `.ci/run` calls these targets; so may you.

.DEFAULT_GOAL := build
.PHONY: build plain profile test lint conformance instructions bench soak fuzz image demo redis-server valgrind clean

CONFORMANCE := tests/conformance
VALKEY := target/valkey/valkey-server
# The benchmarks are a package of their own, built beside the rest.
BENCHES := CARGO_TARGET_DIR=$(CURDIR)/target
IMAGE ?= aside
FUZZ_TARGETS ?= cache_control configuration head range record target vary
FUZZ_SECONDS ?= 60

# The release laid out by a profile of itself under load, as the image has it: target/profiled/aside (docs/performance.md).
build:
	benches/profiled.sh

# The release as cargo builds it by itself: target/release/aside.
plain:
	cargo build --release --locked

# Takes the profile anew.
profile: redis-server
	benches/profile.sh

# Every test: unit, integration (real redis-server and valkey-server processes on free ports) and documentation.
test: redis-server $(VALKEY)
	@if command -v cargo-nextest >/dev/null; then \
		set -ex; cargo nextest run --locked --all-targets --no-fail-fast; \
	else \
		set -ex; cargo test --locked --all-targets --no-fail-fast; \
	fi
	cargo test --locked --doc

lint:
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo fmt --manifest-path benches/Cargo.toml --check
	$(BENCHES) cargo clippy --locked --manifest-path benches/Cargo.toml --all-targets -- -D warnings

# The HTTP cache tests, once with memory alone and once with Redis. STORES=memory runs that one.
conformance: build redis-server $(CONFORMANCE)/node_modules/.package-lock.json
	node --test $(CONFORMANCE)/verdicts.test.mjs
	node $(CONFORMANCE)/run.mjs $(STORES)

$(CONFORMANCE)/node_modules/.package-lock.json: $(CONFORMANCE)/package.json $(CONFORMANCE)/package-lock.json
	npm ci --prefix $(CONFORMANCE) --ignore-scripts --no-audit --no-fund
	@touch $@

# What a request costs either build in instructions, held to benches/instructions.json. UPDATE=1 writes the file.
instructions: plain build redis-server valgrind
	python3 benches/instructions.py plain=target/release/aside profiled=target/profiled/aside $(if $(UPDATE),--update)

# What each step of a request costs by itself, then aside beside bare hyper and nginx (docs/performance.md). With BENCH, options
# of the latter, that alone: --list, --case, --rounds, --seconds.
bench: build redis-server
	$(if $(BENCH),,$(BENCHES) cargo bench --locked --manifest-path benches/Cargo.toml --bench micro)
	$(BENCHES) cargo bench --locked --manifest-path benches/Cargo.toml --bench side_by_side -- $(BENCH)

# The release under load, with random faults of Redis and the upstream: nothing may grow, and no client may see what
# the upstream did not do. Ten minutes; SOAK_SECONDS says otherwise.
soak: build redis-server
	SOAK_ASIDE=$(CURDIR)/target/profiled/aside \
		cargo test --locked --test it soak:: -- --ignored --nocapture

# Each fuzz target for FUZZ_SECONDS, from its seeds and what failed once; needs nightly Rust and cargo-fuzz.
fuzz:
	@set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/corpus/$$target fuzz/regressions/$$target; \
		cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target fuzz/regressions/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1; \
	done

image:
	docker build --tag $(IMAGE) .

demo:
	cargo run --release --locked -- demo

# The tests start servers of their own; the package's service stays off.
redis-server:
	@command -v redis-server >/dev/null || .ci/install-redis-server

valgrind:
	@command -v valgrind >/dev/null || .ci/install-valgrind

$(VALKEY): .ci/valkey.txt .ci/fetch-valkey
	.ci/fetch-valkey $@

clean:
	cargo clean
	rm -rf $(CONFORMANCE)/node_modules
