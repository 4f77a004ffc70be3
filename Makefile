# Every target works from a fresh Debian 12 with Rust installed: what is missing is installed
# first (scripts/install-deps.sh says what and why, and stops with a clear message without root).

CARGO ?= cargo
# Cargo.lock is part of the repository; a build never changes it silently.
CARGO_FLAGS ?= --locked

# Debian keeps the mosquitto broker in /usr/sbin, which is not on every user's PATH;
# rustup's folder is missing until the shell is started anew.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
export CARGO CARGO_FLAGS

.DEFAULT_GOAL := help
.PHONY: help build test lint demo bench compare schema deb test-packaging install-deps

help: ## show this list
	@echo 'make targets:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)$$/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) \
		| while IFS="$$(printf '\t')" read -r name text; do printf '  %-15s %s\n' "$$name" "$$text"; done

build: ## build target/release/mqtt-proxy
	@scripts/install-deps.sh build
	$(CARGO) build $(CARGO_FLAGS) --release

test: ## install what is missing, then run all tests, documentation tests included
	@scripts/test.sh

lint: ## formatting and clippy, warnings are errors
	@scripts/install-deps.sh build
	$(CARGO) fmt --check
	$(CARGO) clippy $(CARGO_FLAGS) --all-targets -- -D warnings

demo: ## two brokers and the proxy on conf/, shown and left running (DEMO_ONCE=1: exit after the show)
	@scripts/demo.sh

bench: ## run the benches
	@scripts/install-deps.sh build
	$(CARGO) bench $(CARGO_FLAGS)

compare: ## the whole proxy beside HAProxy and nginx, in one run of about twenty minutes
	@benches/compare/run.sh

schema: ## write the JSON Schemas that editors use to conf/schema/
	@scripts/install-deps.sh build
	@CARGO='$(CARGO)' scripts/schema.sh

deb: ## build the Debian package into target/debian/
	@packaging/deb.sh

test-packaging: ## install the Debian package into a scratch root and look at it (needs root)
	@packaging/test.sh

install-deps: ## install the Debian packages that build, tests and demo need
	@scripts/install-deps.sh
