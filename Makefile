# Hallmark. `make help` says what there is; the work is done by the program in integration/.
INTEGRATION = cargo run --quiet --release --package hallmark-integration --
# a machine with cargo but without a C library to link against gets one first
PREPARE = hack/prepare
LIBRARIES = --package hallmark-verity --package hallmark-erofs --package hallmark-seal \
            --package hallmark-trust --package hallmark-sys
PROGRAMS = $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-musl/release

# struck by `make crash`: kills at system calls, file calls that fail, power cuts between each two flushes
POINTS = 1000 300 3

.PHONY: help demo test bench check guest node build package crash fuzz conformance-cri conformance-runc \
        conformance-runc-guest conformance-nerdctl soak clean
help: ## what there is
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST)
demo: ## the main job as a table of scenes: on this machine, then in a guest with dm-verity and IPE
	@$(PREPARE) && $(INTEGRATION) demo
test: ## every test: the workspace's, on this machine, in the guest
	@$(PREPARE) && $(INTEGRATION) test
guest: ## the guest's tests alone
	@$(PREPARE) && $(INTEGRATION) guest
bench: ## ours beside containerd's snapshotters, runc, crun and the Go shim, as ratios; FILTER= picks subjects
	@$(PREPARE) && $(INTEGRATION) bench "$(FILTER)"
check: ## format, lints and the libraries' tests, in seconds once built
	@$(PREPARE)
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	cargo test $(LIBRARIES)
build: ## the four programs, static, in target/
	@$(PREPARE)
	cargo build --release --workspace
crash: ## the snapshotter killed, disks that fail, in the guest power cuts; half an hour; POINTS="4000 1000 8" for more
	@$(PREPARE) && $(INTEGRATION) crash $(POINTS)
conformance-cri: ## the CRI's own suite, critest, against our shim, runtime and snapshotter, in five minutes or so
	@$(PREPARE) && $(INTEGRATION) critest
conformance-runc: ## runc's own suite against our runtime, in ten minutes or so
	@$(PREPARE)
	cargo build --release --package hallmark-runtime
	hack/conformance-runc
conformance-runc-guest: ## a part of it in the guest: cgroup v2, SELinux, systemd; on runc, then on ours; an hour or so
	@$(PREPARE) && $(INTEGRATION) bats
conformance-nerdctl: ## everyday uses of nerdctl, with our stack and with containerd's own
	@$(PREPARE) && $(INTEGRATION) nerdctl $(FILTER)
soak: ## 2000 containers (COUNT) while daemons are restarted and killed; SEED repeats a run
	@$(PREPARE) && $(INTEGRATION) soak --count $(or $(COUNT),2000) $(if $(SEED),--seed $(SEED))
fuzz: ## each parser of bytes that others made, with inputs that coverage grows; SECONDS= each, TARGETS= picks some
	@$(PREPARE) && hack/fuzz $(or $(SECONDS),10) $(TARGETS)
node: ## a private node with our stack; SCRIPT='ctr version' is run on it, SITE=guest puts it into the guest
	@$(PREPARE) && $(INTEGRATION) node --site $(or $(SITE),host) '$(or $(SCRIPT),exec sh -i)'
package: build ## a Debian package and a tar of the four programs, their configuration and units, in target/package
	@hack/package $(PROGRAMS)
clean: ## remove what was built, the cache of components and images too
	cargo clean
	rm -rf .cache
