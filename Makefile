# Sprites: a wake-on-request edge for sandboxes. `make help` says what there is.

# The runtime, and the web server that tests put beside it, are static: they run inside sprites, whatever libraries
# those have.
TARGET := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
INSIDE_FLAGS := RUSTFLAGS="-C target-feature=+crt-static"

.DEFAULT_GOAL := help
.PHONY: help deps build image run test unit e2e e2e-vm lint fuzz measure bench bench-quick simulate clean

help: ## Say what there is
	@echo "Two commands are enough:"
	@echo
	@echo "  make run    build and start everything, with a demo sprite, until Ctrl-C"
	@echo "  make test   build everything and prove that it works"
	@echo
	@echo "All targets:"
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  %-14s %s\n", $$1, $$2}'
	@echo
	@echo "Settings of make run: PORT=8080 TLS_PORT=8443 ADMIN_PORT=9090 IDLE=30 (seconds to warm) COLD=600 (to cold) DRIVER=process (or qemu) SUSPEND=60 (to disk)"
	@echo "Settings of make simulate: STEPS=10000000 SEED=1"

deps: ## Install what building needs and a fresh machine lacks (or name it)
	@scripts/deps.sh build

build: deps ## Build the programs (optimized) into target/
	$(INSIDE_FLAGS) cargo build --release --locked -p runtime -p backend --target $(TARGET)
	cargo build --release --locked -p gateway -p vmm-agent -p cli -p loadtest

image: build ## Build what virtual machines boot into target/images: IMAGE=minimal (or default, full)
	@scripts/deps.sh vm $(IMAGE)
	target/release/vmm-agent image build --image $(or $(IMAGE),minimal) --images-dir target/images \
		--runtime target/$(TARGET)/release/runtime

run: build ## Start everything with a demo sprite; Ctrl-C leaves nothing behind
	@PORT="$(PORT)" TLS_PORT="$(TLS_PORT)" ADMIN_PORT="$(ADMIN_PORT)" IDLE="$(IDLE)" SUSPEND="$(SUSPEND)" COLD="$(COLD)" \
		DRIVER="$(DRIVER)" scripts/run.sh

test: build unit e2e e2e-vm ## Everything: unit, property and simulation tests, then end to end with real clients

unit: deps ## Unit and property tests of every crate, a million simulated steps included
	$(INSIDE_FLAGS) cargo build --release --locked -p runtime -p backend --target $(TARGET)
	SPRITES_RUNTIME="$(CURDIR)/target/$(TARGET)/release/runtime" cargo test --locked --workspace --exclude e2e

e2e: build ## Real gateways, agents, sprites and clients (curl, Node, Python, the official SDKs)
	@scripts/deps.sh test
	cargo test --locked -p e2e -- --test-threads=2 $(addprefix --skip ,$(VM_ONLY))

# What only virtual machines do; faults, which kills them nearly 200 times, keeps both cores busy.
VM_ONLY := machine:: faults::
# What of the suite `make test` runs over machines: where it matters how a sprite sleeps and wakes. The rest of what needs
# nothing but the image `minimal` takes as long again, and runs with VM_ALL=1.
VM_SUITE := wake:: idle:: crash:: delivery:: readiness:: pressure:: machine::
VM_MORE := activity:: connections:: auth:: files:: framing:: api:: cli:: storm::no_request storm::a_forced sdk::the_pypi sdk::pythons sdk::nodes
# A gibibyte takes minutes through a machine whose instructions are translated; a disk that is filled for a test has no room
# for a machine's memory.
VM_TOO_SLOW := --skip a_gigabyte_that_waits --skip a_full_disk_is_said

e2e-vm: build ## Of the same end-to-end tests those about waking and sleeping, with virtual machines; VM_ALL=1 for more
	@scripts/deps.sh test
	$(MAKE) --no-print-directory image IMAGE=minimal
	SPRITES_TEST_DRIVER=qemu cargo test --locked -p e2e -- --test-threads=2 \
		$(VM_SUITE) $(if $(VM_ALL),$(VM_MORE)) $(VM_TOO_SLOW)
	cargo test --locked -p e2e -- --test-threads=1 faults::

lint: deps ## What a reviewer would say first: rustfmt, clippy, shellcheck where there is one
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck -S warning scripts/*.sh certs/*.sh .ci/run; else echo "shellcheck is not installed; skipped"; fi

fuzz: deps ## Throw random bytes at everything that reads a stranger's: SECONDS=60 each
	scripts/fuzz.sh $(or $(SECONDS),60) $(TARGETS)

measure: build ## Measure wakes, holds and storms on this machine (see docs/performance.md)
	target/release/loadtest all

bench: build ## Compare with nginx, HAProxy, Caddy, Traefik, bare hyper and bare Pingora (25 minutes)
	@scripts/deps.sh bench
	@mkdir -p docs/plots
	target/release/loadtest bench --plot docs/plots/bench.svg

bench-quick: build ## The same in less than five minutes
	@scripts/deps.sh bench
	target/release/loadtest bench --quick

simulate: ## Random walks through all state machines at once: STEPS=… SEED=…
	cargo run --release --locked -p simulation -- $(if $(STEPS),--steps $(STEPS)) $(if $(SEED),--seed $(SEED))

clean: ## Remove what was built and what make run keeps (the demo's disks too)
	cargo clean
	rm -rf .run tests/sdk/node_modules tests/sdk/.venv
