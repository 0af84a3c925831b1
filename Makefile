# One Cargo profile (dev) serves building, the demo and the tests; crates that hash, inflate or store are optimised in it.
CARGO ?= cargo
BIN := $(or $(CARGO_TARGET_DIR),target)/debug
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release
DEMO_IMAGE := target/demo/image.tar

.PHONY: help build demo demo-image sample-images test test-guest lint format soak bench-start bench-migrate bench-volume bench-store bench-place bench-proxy bench-image setup setup-test

help:
	@echo "make build        godwit, godwit-shim and godwit-lab in $(BIN)"
	@echo "make demo         the main job, told as a story (root); IMAGE=path PORT=n for another image"
	@echo "make demo-image   $(DEMO_IMAGE)"
	@echo "make sample-images  nginx, Redis, PostgreSQL and others as images in target/images (root)"
	@echo "make test         formatting, lints and every test (root)"
	@echo "make lint         formatting and lints alone"
	@echo "make test-guest   the driver's tests under cgroup v2, in a QEMU guest"
	@echo "make soak         kills under load, round after round (root); ROUNDS=n"
	@echo "make bench-migrate  client gaps of moves (root); FLAGS='--moves 3 --sizes 1' for a short one"
	@echo "make bench-volume  hydration and front end beside nbdcopy, sendfile and a raw loop (root)"
	@echo "make bench-proxy  what a request costs in the edge, beside nginx, haproxy and caddy (root)"
	@echo "make bench-start  bench-store  bench-place: numbers beside a peer's in the same minute"

setup:
	@scripts/setup

setup-test:
	@scripts/setup test

build: setup
	$(CARGO) build --package godwit --package godwit-shim --package godwit-lab \
		--bin godwit --bin godwit-shim --bin godwit-lab

# The flags after -- are for this one binary alone: it must run in an image that holds nothing else.
demo-image: build
	$(CARGO) rustc --package godwit-demo-app --bin demo-app -- -C target-feature=+crt-static -C strip=symbols
	$(BIN)/godwit-lab image --binary $(BIN)/demo-app --output $(DEMO_IMAGE)

# From Debian's, PyPI's and npm's packages; made once.
sample-images: setup-test
	scripts/sample-images

demo: demo-image
	$(BIN)/godwit-lab demo --output target/demo --image $(or $(IMAGE),$(DEMO_IMAGE)) \
		$(if $(IMAGE),--foreign) $(if $(PORT),--port $(PORT))

lint: format
	$(CARGO) clippy --workspace --all-targets -- -D warnings

format:
	$(CARGO) fmt --all --check

# Linted while it is compiled for the tests: clippy's driver is a compiler, and Cargo gives it the workspace's crates
# alone. A lint of its own would check every dependency once more, which takes three minutes on two cores.
test: export RUSTC_WORKSPACE_WRAPPER := clippy-driver
test: export CLIPPY_ARGS := -Dwarnings__CLIPPY_HACKERY__
test: setup-test format demo-image sample-images
	$(CARGO) test --workspace --no-fail-fast

# The driver's tests once more under cgroup v2, in a QEMU guest with Debian's kernel; no /dev/kvm is needed.
test-guest: setup-test
	scripts/guest-cgroup2

soak: demo-image test-guest
	$(BIN)/godwit-lab soak --output target/soak --image $(DEMO_IMAGE) $(if $(ROUNDS),--rounds $(ROUNDS))
	GODWIT_MOVES_ALL=1 $(CARGO) test --workspace --test fleet moves:: -- --nocapture
	GODWIT_POWER_STATES=3000 $(CARGO) test --workspace --test it power:: -- --nocapture
	GODWIT_SOAK=1 $(CARGO) test --workspace --test fleet flood:: -- --nocapture
	GODWIT_SOAK=1 $(CARGO) test --workspace --test it upgrade:: -- --nocapture

# Benchmarks alone are built with optimisation: what they print is compared with programs that are. The Machine's program is
# optimised as well: it must keep up with what is in front of it.
bench-image: setup
	$(CARGO) build --release --package godwit --package godwit-shim --package godwit-lab \
		--bin godwit --bin godwit-shim --bin godwit-lab
	$(CARGO) rustc --release --package godwit-demo-app --bin demo-app -- -C target-feature=+crt-static -C strip=symbols
	$(RELEASE)/godwit-lab image --binary $(RELEASE)/demo-app --output target/demo/image-release.tar

bench-start: setup-test bench-image
	$(CARGO) run --release --package godwit-lab --example bench_start

bench-migrate: bench-image
	$(CARGO) run --release --package godwit-lab --example bench_migrate -- $(FLAGS)

bench-proxy: bench-image
	scripts/setup bench
	$(CARGO) run --release --package godwit-lab --example bench_proxy -- $(FLAGS)

# FLAGS: MIB ROUNDS [SECONDS]. The folder must be on a real disk.
bench-volume: setup-test
	mkdir -p target/bench
	$(CARGO) run --release --package godwit-volume --example bench -- target/bench $(or $(FLAGS),1024 5)

bench-store: setup
	mkdir -p target/bench
	$(CARGO) run --release --package godwit-store --example bench_store -- target/bench

bench-place: setup
	$(CARGO) run --release --package godwit-control --example bench_place
