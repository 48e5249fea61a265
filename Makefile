# The one menu: `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BINARIES := clip clip-operator clip-csi-node
CLIP_CACHE_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/clip
export CLIP_CACHE_DIR
step = @printf '\n== %s (%s)\n' "$(1)" "$$(date +%T)"

.PHONY: help
help: ## Show this menu
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: demo demo-stop
demo: ## Start a real cluster, install Clip, and let a pod read an image that nobody pulled
	@e2e/demo
demo-stop: ## Stop what `make demo` started
	@e2e/cluster/down

.PHONY: test
# Most tests wait, for a cluster or for something to time out. The oracle, which computes, runs beside them and says at the
# end what it did. Not so the fuzzers: they have some seconds, of which the compilers would leave them little.
test: setup lint fuzz ## Everything that must pass before a commit
	@said=$$(mktemp); status=0; \
	nice -n 10 $(MAKE) --no-print-directory oracle-share >"$$said" 2>&1 & \
	$(MAKE) --no-print-directory unit e2e || status=$$?; \
	wait $$! || status=$$?; \
	cat "$$said"; rm -f "$$said"; exit $$status
.PHONY: nightly
nightly: export CLIP_SOAK_SECONDS = 1200
nightly: export CLIP_KILLS = 1000
nightly: setup lint unit fuzz-long oracle-long e2e ## The same with hours of fuzzing, made-up layers and faults

.PHONY: setup
setup: ## Install and build what tests and demo need, once per machine
	$(call step,setup)
	@e2e/cluster/setup

.PHONY: lint
lint: ## Formatting, clippy, lock files, chart
	$(call step,lint)
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@# A workspace of its own, whose lock file must follow.
	cargo fetch --quiet --locked --target "$$(rustc -vV | sed -n 's/^host: //p')" --manifest-path fuzz/libfuzzer/Cargo.toml
	e2e/deploy/lint

.PHONY: unit
# Half of what these tests do is waiting.
unit: export RUST_TEST_THREADS ?= $(shell expr 2 '*' $$(nproc))
# Those that mount nothing, or name their engine, need not be repeated with the other engine.
once = judges users verify archive errors promises reuse talk eviction engines
unit: ## Tests that need no cluster (real registries, mounts and judges, as root)
	$(call step,unit and integration tests)
	cargo test --locked --workspace --exclude clip-e2e
	CLIP_ENGINE=erofs cargo test --locked --workspace --exclude clip-e2e --test clip -- $(once:%=--skip %::)

.PHONY: fuzz fuzz-long
fuzz: ## Every fuzz target for some seconds; see fuzz/README.md
	$(call step,fuzz targets)
	fuzz/run smoke
fuzz-long:
	$(call step,fuzz targets at length)
	fuzz/run long

.PHONY: oracle oracle-share oracle-long
oracle: ## Both views against three unpackers: 20,000 made-up stacks of layers, kept ones, Go's tars, real images
	e2e/oracle/run
oracle-share:
	$(call step,oracle (a share of make oracle))
	@# The same stacks on every machine, however fast: a commit is judged by what it changed. New ones are for
	@# `oracle` and `nightly`.
	e2e/oracle/run --stacks 6000 --seed 1
oracle-long:
	$(call step,oracle at length)
	e2e/oracle/run --stacks 500000

.PHONY: release
release: ## The static binaries
	$(call step,release binaries)
	cargo build --locked --release $(addprefix -p ,$(BINARIES))

.PHONY: e2e
e2e: release ## The whole system on a real cluster
	$(call step,end to end)
	e2e/run

.PHONY: bench
bench: release ## Ratios against peers and limits; NAME=start for one, CASE=numpy for a part of it, JSON=FILE for rows
	cargo run --locked --release -q -p clip-bench -- $(if $(NAME),--name $(NAME)) $(if $(CASE),--case $(CASE)) $(if $(JSON),--json $(JSON))

.PHONY: generate
generate: ## Rewrite generated files: CRD YAML, golden transcripts
	UPDATE_EXPECT=1 cargo test --locked -p clip-crds -p clip-operator

.PHONY: deny
deny: ## Licences, sources and who may import what (installs cargo-deny on first use)
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny check bans licenses sources

.PHONY: clean
clean: ## Remove build results and the cluster; the cache of tools and images stays
	e2e/cluster/down
	cargo clean
