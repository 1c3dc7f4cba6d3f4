# The project's workshop: `make` alone lists what there is to make.
#
# Everything a target needs and a fresh Debian machine with Go, gcc, make and
# git lacks is installed by the target itself: Debian packages by apt-get, Go
# programs by `go install` at the versions below into out/tools. `test`, `demo`
# and `bench` mount, make network namespaces and run containers: they need root.

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=

# Pinned versions, each checked by hand to build with the Go of go.mod.
CONTAINERD_VERSION    := v2.4.2
STATICCHECK_VERSION   := v0.8.2
GOLANGCI_LINT_VERSION := v2.15.0
GOFUMPT_VERSION       := v0.12.0
GOVULNCHECK_VERSION   := v1.9.0

# runc runs the containers, erofs-utils checks the trees we write, skopeo reads
# the images we write as somebody else would, fio reads them for the benchmark.
DEBIAN_PACKAGES := runc erofs-utils skopeo fio

TOOLS         := out/tools
CONTAINERD    := $(TOOLS)/containerd/$(CONTAINERD_VERSION)
STATICCHECK   := $(TOOLS)/staticcheck/$(STATICCHECK_VERSION)/staticcheck
GOLANGCI_LINT := $(TOOLS)/golangci-lint/$(GOLANGCI_LINT_VERSION)/golangci-lint
GOFUMPT       := $(TOOLS)/gofumpt/$(GOFUMPT_VERSION)/gofumpt
GOVULNCHECK   := $(TOOLS)/govulncheck/$(GOVULNCHECK_VERSION)/govulncheck

# The integration tests find containerd, ctr and the shim here.
export CONTAINERD_BIN := $(abspath $(CONTAINERD))

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

.PHONY: build
build: ## bin/ipfs-stargz, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ipfs-stargz ./cmd/ipfs-stargz

.PHONY: demo
demo: root debian-packages $(CONTAINERD)/containerd build ## a Python image from IPFS, started before it has arrived (root)
	$(GO) run ./integration/cmd/demo -binary bin/ipfs-stargz

.PHONY: test
test: test-unit test-integration ## every test; all of our own code with the race detector (root)

.PHONY: test-unit
test-unit: root debian-packages ## the tests beside the code (root)
	$(GO) test -race -timeout 10m $(TESTFLAGS) $$($(GO) list ./... | grep -v /integration)

# Not cached: what they test is outside of the test binary. The race detector
# is in the daemon that they run; in the binary itself it would only make the
# packing of test images ten times slower.
.PHONY: test-integration
test-integration: root debian-packages $(CONTAINERD)/containerd helia ## real containerd, runc, kernel and network namespaces (root)
	$(GO) test -count=1 -timeout 40m $(TESTFLAGS) ./integration/...

.PHONY: lint
lint: lint-format lint-vet lint-staticcheck lint-golangci lint-vulnerabilities ## format, vet, staticcheck, golangci-lint (import rules), govulncheck

.PHONY: lint-format
lint-format: $(GOFUMPT)
	@bad=$$(git ls-files -co --exclude-standard '*.go' | xargs -r $(GOFUMPT) -l) || exit 1; \
	if [ -n "$$bad" ]; then echo "not in gofumpt's format (mend with: $(GOFUMPT) -w FILE):"; echo "$$bad"; exit 1; fi

.PHONY: lint-vet
lint-vet:
	$(GO) vet ./...

.PHONY: lint-staticcheck
lint-staticcheck: $(STATICCHECK)
	$(STATICCHECK) ./...

.PHONY: lint-golangci
lint-golangci: $(GOLANGCI_LINT)
	$(GOLANGCI_LINT) run

# govulncheck ends with 3 when it found something. Where its database cannot
# be reached there is nothing to hold against the code, but nobody should
# believe that it was checked either.
.PHONY: lint-vulnerabilities
lint-vulnerabilities: $(GOVULNCHECK)
	@out=$$($(GOVULNCHECK) ./... 2>&1); code=$$?; echo "$$out"; \
	if [ $$code -ne 0 ] && [ $$code -ne 3 ] && echo "$$out" | grep -q 'https://vuln.go.dev/'; then \
		echo "NOT CHECKED for known vulnerabilities: https://vuln.go.dev cannot be reached from here."; exit 0; fi; \
	exit $$code

# The Go benchmarks, for people: standard output stays free for the figures
# that scripts read, one JSON object a line.
.PHONY: bench
bench: bench-ipfs bench-fs ## the benchmarks: figures as JSON lines, tables on stderr (root)
	@$(GO) test -run '^$$' -bench . -benchmem $(TESTFLAGS) ./... >&2

.PHONY: bench-ipfs
bench-ipfs: root ## of them, the IPFS plane: one peer, slow links, a swarm, many peers (root)
	@mkdir -p out/bin
	@$(GO) build -o out/bin/bench-ipfs ./integration/cmd/bench-ipfs
	@out/bin/bench-ipfs $(BENCHFLAGS)

# What it needs is made on standard error: make says on standard output what it
# does, and that is for figures alone.
.PHONY: bench-fs
bench-fs: root ## of them, the file system: reads, small files, walks, mounts, memory (root)
	@$(MAKE) --no-print-directory debian-packages $(CONTAINERD)/containerd build >&2
	@mkdir -p out/bin
	@$(GO) build -o out/bin/bench-fs ./integration/cmd/bench-fs
	@out/bin/bench-fs $(BENCHFLAGS)

.PHONY: install
install: build ## the binary into $(DESTDIR)$(PREFIX)/bin
	install -D -m 0755 bin/ipfs-stargz $(DESTDIR)$(PREFIX)/bin/ipfs-stargz

.PHONY: sweep
sweep: ## stop and unmount what a broken test or demo left behind (root)
	@if [ -d out/run ]; then $(GO) run ./integration/cmd/sweep out/run; fi

.PHONY: clean
clean: sweep ## sweep, and remove bin and out
	rm -rf bin out

# What follows is needed by the targets above and not worth a line of help.

.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "this target mounts file systems and runs containers: run it as root"; exit 1; }

.PHONY: debian-packages
debian-packages:
	@missing=; for p in $(DEBIAN_PACKAGES); do \
		dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then set -x; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi

# An independent IPFS node for the tests, with a Node.js of its own (see its
# package.json): of the system's, npm alone is used.
HELIA := integration/helia/node_modules/.package-lock.json

.PHONY: helia
helia: $(HELIA)

$(HELIA): integration/helia/package-lock.json integration/helia/package.json
	@command -v npm >/dev/null || { set -x; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm; }
	cd integration/helia && npm ci --no-progress
	@touch $@

# The shim is named by its path in a containerd that is not installed, so the
# three stay in one folder.
$(CONTAINERD)/containerd:
	GOBIN=$(CONTAINERD_BIN) $(GO) install \
		github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@$(CONTAINERD_VERSION) \
		github.com/containerd/containerd/v2/cmd/ctr@$(CONTAINERD_VERSION) \
		github.com/containerd/containerd/v2/cmd/containerd@$(CONTAINERD_VERSION)

$(STATICCHECK):
	GOBIN=$(abspath $(@D)) $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)

$(GOLANGCI_LINT):
	GOBIN=$(abspath $(@D)) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)

$(GOFUMPT):
	GOBIN=$(abspath $(@D)) $(GO) install mvdan.cc/gofumpt@$(GOFUMPT_VERSION)

$(GOVULNCHECK):
	GOBIN=$(abspath $(@D)) $(GO) install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
