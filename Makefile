# SPDX-License-Identifier: Apache-2.0
# Everything a developer runs. `make help` lists it; CACHE and OUT move what is kept between runs.

ifeq ($(shell id -u),0)
CACHE ?= /var/cache/dstack
CARGO_TARGET_DIR ?= $(CACHE)/target
else
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dstack
CARGO_TARGET_DIR ?= $(CURDIR)/target
endif
OUT ?= $(CACHE)/out
CARGO ?= cargo
V ?= 0
PROFILE ?= prod
export CACHE OUT CARGO_TARGET_DIR V ONLY KEEP DEBIAN_MIRROR

DEPS = tests/vm/lib/deps.sh

.PHONY: help all build install deb image ingress demo check unit scores sdk attacks bench-boot bench-kms bench-proxy bench-idle bench-idle-processes lint machine clean distclean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo '  ONLY=TEST-NN-NAME   run one test of `check`        KEEP=1  leave the host machine running'
	@echo '  CACHE=$(CACHE)  trees, images    OUT=$(OUT)  results    V=1  show all output'

all: build

build: ## compile every daemon and command line (release)
	@$(DEPS) build
	$(CARGO) build --release --locked --workspace

# ---- install: files into DESTDIR; kept with debian/ ------------------------------------------------
prefix ?= /usr
BIN ?= $(CARGO_TARGET_DIR)/release
LIBEXEC = dstack-teepod dstack-vm dstack-vm-net dstack-prepare dstack-app dstack-network dstack-status dstack-tappd \
	dstack-quote-sim dstack-kms dstack-kms-seal dstack-tproxy dstack-tproxy-flow dstack-ct-monitor
PUT = install -m 644 -D -t $(DESTDIR)
UNITS = $(foreach t,service socket slice target timer mount,$(wildcard units/host/*.$(t) units/guest/*.$(t)))

install: ## copy programs, units, policies, man pages into DESTDIR
	@test -n "$(DESTDIR)" || { echo 'error: give DESTDIR=/some/where'; exit 1; }
	install -m 755 -D -t $(DESTDIR)$(prefix)/libexec/dstack $(LIBEXEC:%=$(BIN)/%) \
		daemons/vm/dstack-vm-register debian/image/dstack-image-import
	install -m 755 -D -t $(DESTDIR)$(prefix)/bin $(BIN)/dstackctl $(BIN)/tdxctl $(BIN)/dstack-certbot
	install -m 755 -D -t $(DESTDIR)$(prefix)/share/dstack daemons/kms/kms-allow-upgrade.sh
	$(PUT)$(prefix)/lib/dstack units/host/teepod.toml units/host/kms.toml units/host/tproxy.toml units/host/certbot.toml \
		units/host/ct-monitor.toml
	$(PUT)$(prefix)/lib/systemd/system $(UNITS)
	for d in $(wildcard units/*/*.d); do $(PUT)$(prefix)/lib/systemd/system/$${d##*/} $$d/*.conf || exit; done
	$(PUT)$(prefix)/lib/systemd/system-preset $(wildcard units/host/*.preset)
	$(PUT)$(prefix)/lib/systemd/catalog $(wildcard units/host/*.catalog)
	install -m 644 -D units/guest/dstack.catalog $(DESTDIR)$(prefix)/lib/systemd/catalog/dstack-guest.catalog
	for f in $(wildcard units/*/*.sysusers units/*/*.tmpfiles); do n=$${f##*/}; \
		install -m 644 -D $$f $(DESTDIR)$(prefix)/lib/$${n##*.}.d/$${n%.*}.conf || exit; done
	$(PUT)$(prefix)/share/dbus-1/system.d $(wildcard dbus/*.conf)
	$(PUT)$(prefix)/share/dbus-1/system-services $(wildcard dbus/*.service)
	$(PUT)$(prefix)/share/dbus-1/interfaces $(wildcard dbus/interfaces/*.xml)
	$(PUT)$(prefix)/share/polkit-1/actions $(wildcard polkit/*.policy)
	$(PUT)$(prefix)/share/polkit-1/rules.d $(wildcard polkit/*.rules)
	for page in $(wildcard man/*.[1-8]); do $(PUT)$(prefix)/share/man/man$${page##*.} "$$page" || exit; done
	$(BIN)/xtask man $(DESTDIR)$(prefix)/share/man
	$(BIN)/xtask completions $(DESTDIR)$(prefix)/share
	install -m 644 -D units/host/needrestart.conf $(DESTDIR)/etc/needrestart/conf.d/dstack.conf

# The image contains the package dstack-guest, so its own package is made after both.
.PHONY: image-deb
image-deb: ## pack the built guest image as a Debian package into $(OUT)/deb
	@for i in $(OUT)/image/dstack*-[0-9]*; do debian/image/build "$$i" $(OUT)/deb || exit; done
# ---- end of install --------------------------------------------------------------------------------

deb: ## build the Debian packages into $(OUT)/deb and run lintian
	@$(DEPS) build deb
	@tests/vm/build-debs

image: ## build the guest image (PROFILE=prod or dev) into $(OUT)/image
	@$(DEPS) build image
	@tests/vm/build-image $(PROFILE)

ingress: ## the image of the ingress as an app in a CVM (an OCI layout) into $(OUT)/ingress
	@$(DEPS) build deb image
	@tests/vm/build-debs
	@tests/vm/build-ingress

demo: ## packages, image, host machine, an app in a VM, its page
	@tests/vm/demo

check: ## all tests: unit, bus, host machine, guests
	@tests/vm/suite

unit: ## unit, property and bus tests; no root
	@$(DEPS) build unit
	@tests/vm/unit

sdk: ## the published SDKs (PyPI, npm, crates.io), unmodified, against the agent
	@$(DEPS) build unit
	@tests/sdk/run

attacks: ## one line for each known attack and trust rule, with the tests that hold it
	@tests/attacks/run

bench-kms: ## keys a second, p99 and memory of the key service
	@tests/bench/kms/run

bench-proxy: ## the ingress beside HAProxy, nginx and sniproxy, and what it must reach
	@$(DEPS) build unit
	@tests/bench/proxy/run

bench-idle: ## 50,000 idle and 10,000 half-open connections to the ingress, in the QEMU machine
	@$(DEPS) build deb vm
	@tests/vm/build-debs
	@IDLE=50000 HALF=10000 QEMU_MEMORY=4G tests/vm/run TEST-13-KERNEL

bench-idle-processes: ## 52,500 idle connections, held by seven data planes on this machine
	@$(DEPS) build
	@tests/bench/idle/run

bench-boot: ## boot time, ours against a plain Debian with Docker, in one run
	@tests/bench/boot/run

scores: ## systemd-analyze security for every unit
	@V=1 ONLY=TEST-03-SCORES tests/vm/suite

lint: ## formatting and clippy
	@$(DEPS) lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

machine: ## boot a host machine with the packages' repository and enter it
	@tests/vm/machine start && tests/vm/machine shell; tests/vm/machine stop

clean: ## remove what was built, keep the cached trees
	$(CARGO) clean
	rm -rf "$(OUT)"

distclean: clean ## remove the cached trees too
	tests/vm/machine stop
	rm -rf "$(CACHE)/trees" "$(CACHE)/lock"
