# imageroot. "make" lists the targets.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  = -s -w -X imageroot/shared/config.release=$(VERSION)
GOTEST   = $(GO) test -vet=off -timeout 40m
STRICT   = $(GO) run ./test/strict
OUT      = out

# Tests run programs that are not in the PATH of ordinary users (mkfs.ext4).
export PATH := $(PATH):/usr/sbin:/sbin

# What is built is without C, as the releases are, and without debug information,
# which no target links and which takes a sixth of the time to compile.
export CGO_ENABLED = 0
export GOFLAGS += -gcflags=all=-dwarf=false

# The programs that make test and make deep run, and those of other targets, as
# COMMAND:PACKAGE of Debian, or FILE:PACKAGE.
NEEDS = git:git curl:curl aws:awscli rclone:rclone qemu-img:qemu-utils nbdinfo:libnbd-bin nbdkit:nbdkit xz:xz-utils zstd:zstd openssl:openssl zip:zip unzip:unzip nginx:nginx-light busybox:busybox-static aria2c:aria2 \
        jq:jq shellcheck:shellcheck wget:wget bzip2:bzip2 pbzip2:pbzip2 bgzip:tabix genisoimage:genisoimage bmaptool:bmap-tools \
        sfdisk:fdisk mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs mkfs.vfat:dosfstools mksquashfs:squashfs-tools \
        mcopy:mtools jsonschema:python3-jsonschema lxc:lxd-client gpgv:gpgv gpg:gpg minisign:minisign zsh:zsh fish:fish /usr/share/bash-completion/bash_completion:bash-completion \
        /lib/systemd/systemd-pull:systemd-container qemu-system-x86_64:qemu-system-x86 /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf
MORE  = npm:npm gcc:gcc gencat:libc6-dev chromium:chromium qemu-aarch64-static:qemu-user-static systemd-analyze:systemd setpriv:util-linux caddy:caddy dnsmasq:dnsmasq-base buildah:buildah packer:packer

# install installs the packages of the programs that are missing.
define install
	@missing=; for n in $(1); do command -v $${n%%:*} >/dev/null || test -e $${n%%:*} || missing="$$missing $${n##*:}"; done; \
	test -z "$$missing" || { \
	  if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
	  echo "The tests need Debian packages that are not installed. This takes root, and nothing else does: $$sudo apt-get install$$missing"; \
	  $$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; }
endef

# The packages with tests. make check compiles the others.
UNIT = $(shell $(GO) list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | grep -v -e /test/e2e -e /test/integration -e /test/browser -e /test/lambda -e /test/infra -e /test/s3suite)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: ## run imageroot from source
	$(GO) run ./local

.PHONY: build
build: ## build bin/imageroot
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/imageroot ./local

.PHONY: deps
deps: ## install what every target needs (Debian packages)
	$(call install,$(NEEDS) $(MORE))

.PHONY: testdeps
testdeps: ## install what make test needs (Debian packages)
	$(call install,$(NEEDS))

# Many tests wait more than they compute: two packages run on each processor, and
# six tests of each package.
PARALLEL = -p $$((2 * $$(nproc))) -parallel 6

# The names of tests that take minutes, gigabytes or root begin with TestDeep.
# Tests that run programs other than go call test/need, and -short skips them.
.PHONY: unit
unit: ## the units, with Go alone (75 seconds on two cores)
	@$(GOTEST) $(PARALLEL) -short -skip '^TestDeep' -json $(UNIT) | $(STRICT) -may-skip 'left out with -short'
	@echo 'Left out: units that run other programs, and the real binary with curl, aws and rclone (make test).'

.PHONY: test
test: testdeps ## the units, and the real binary with curl, aws and rclone (five minutes, 3 GiB of disk)
	@$(GO) list -export ./local >/dev/null # compiles it, which test/e2e and go test would do at once
	@$(GOTEST) $(PARALLEL) -skip '^TestDeep' -json ./test/e2e $(UNIT) | $(STRICT)
	@echo "Left out: $$(grep -rh --include='*_test.go' '^func TestDeep' . | wc -l) tests that take minutes, gigabytes or root (make deep), the pages in Chromium (make browser),"
	@echo 'versitygw'"'"'s suite (make s3suite), MinIO (make integration), Lambda (make runtime), installing (make infra), kills under load (make torture, make hostile).'

# etcher installs the library of balenaEtcher in tools/bin, and compiles its two native
# parts with the headers of node.
.PHONY: etcher
etcher:
	@mkdir -p tools/bin/etcher && cp tools/etcher/* tools/bin/etcher && cd tools/bin/etcher && \
	{ test -e node_modules/drivelist/build/Release/drivelist.node || { \
	  npm install --no-audit --no-fund --no-package-lock --loglevel error --ignore-scripts && \
	  npm rebuild --loglevel error --nodedir="$$(dirname "$$(dirname "$$(readlink -f "$$(command -v node)")")")" @ronomon/direct-io drivelist; }; }

.PHONY: deep
deep: testdeps etcher ## the tests that take minutes, 6 GiB of disk or root
	$(call install,packer:packer)
	@$(GOTEST) -run '^TestDeep' -json $$(grep -rl --include='*_test.go' '^func TestDeep' . | xargs -n1 dirname | sort -u) | $(STRICT)

.PHONY: infra
infra: deps servers dist ## installing: systemd units, containers, a proxy, and the release under emulation
	$(GOTEST) -json ./test/infra | $(STRICT)

AXE = axe-core@4.14.1
AXE_SHA256 = 29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c

.PHONY: axe
axe: ## download axe-core, which checks the pages in make browser, to tools/bin (npm, once)
	@mkdir -p tools/bin && cd tools/bin && { echo '$(AXE_SHA256)  axe.min.js' | sha256sum --quiet --status -c 2>/dev/null || { \
	  echo 'downloading $(AXE)'; npm pack --silent $(AXE) >/dev/null && tar -xzf $(subst @,-,$(AXE)).tgz --strip-components=1 package/axe.min.js && \
	  rm $(subst @,-,$(AXE)).tgz && echo '$(AXE_SHA256)  axe.min.js' | sha256sum --quiet -c; }; }

.PHONY: browser
browser: deps axe ## the pages in Chromium, checked by axe-core; screenshots go to out/screenshots
	$(GOTEST) -json ./test/browser -parallel 4 -screenshots $(abspath $(OUT))/screenshots | $(STRICT)

.PHONY: picture
picture: deps ## take the README's picture of the page, docs/page.webp
	$(GO) test ./test/browser -count=1 -run TestPicture -picture $(CURDIR)/docs/page.webp

MINIO = minio@v0.0.0-20260212201848-7aac2a2c5b7c
MC    = mc@v0.0.0-20250313080218-cf909e1063a9

.PHONY: servers
servers: ## build MinIO, its client and a registry in tools/bin (five minutes, once)
	@for m in $(MINIO) $(MC); do \
	  $(GO) version -m tools/bin/$${m%@*} 2>/dev/null | grep -q "$${m#*@}" || { \
	  echo "building github.com/minio/$$m"; GOBIN=$(CURDIR)/tools/bin nice $(GO) install -trimpath github.com/minio/$$m || exit 1; }; done
	@nice $(GO) -C tools/registry build -trimpath -o ../bin/registry .

.PHONY: integration
integration: deps servers ## over MinIO and a registry: the store, events across restarts, and the tests of test/e2e
	$(GOTEST) -json ./test/integration | $(STRICT)
	$(GOTEST) -json -skip '^TestDeep' ./test/e2e -minio -registry $(CURDIR)/tools/bin/registry | $(STRICT) -may-skip 'plain files are a matter of the gateway inside'

.PHONY: s3suite
s3suite: ## versitygw's own integration suite against the gateway inside (about a minute)
	$(GOTEST) -json ./test/s3suite | $(STRICT)

.PHONY: torture
torture: ## three runners under load, kills and a damaged index, then check every invariant (TORTURE='-duration 10m -seed 7')
	$(GO) run ./test/torture $(TORTURE)

.PHONY: hostile
hostile: ## 5,000 hostile connections of each kind: memory, and whether others are served (HOSTILE='-only raw')
	$(GO) run ./test/hostile $(HOSTILE)

# Its tags are no versions that Go knows.
EMULATOR = aws-lambda-runtime-interface-emulator@v0.0.0-20261030222936-bef5c4ba774d

.PHONY: emulator
emulator: ## build AWS's Lambda emulator in tools/bin (seconds, once)
	@$(GO) version -m tools/bin/aws-lambda-rie 2>/dev/null | grep -q '$(subst @,.*,$(EMULATOR))' || \
	  GOBIN=$(CURDIR)/tools/bin nice $(GO) install -trimpath github.com/aws/$(subst @,/cmd/aws-lambda-rie@,$(EMULATOR))

LAMBDA = -trimpath -tags lambda.norpc -ldflags '$(LDFLAGS)'

.PHONY: lambda
lambda: deps ## the functions for AWS, zipped, in dist/lambda
	@rm -rf dist/lambda && mkdir -p dist/lambda
	@for f in upload catalog addbyurl hash fetch; do \
	  GOOS=linux GOARCH=arm64 $(GO) build $(LAMBDA) -o dist/lambda/$$f/bootstrap ./functions/$$f/lambda || exit 1; \
	  (cd dist/lambda/$$f && zip -q -9 -X ../$$f.zip bootstrap) || exit 1; \
	  echo "dist/lambda/$$f.zip $$(wc -c < dist/lambda/$$f.zip) bytes"; done

# sam build calls this target for each function of template.yaml.
build-%Function:
	GOOS=linux GOARCH=arm64 $(GO) build $(LAMBDA) -o $(ARTIFACTS_DIR)/bootstrap ./functions/$$(echo $* | tr A-Z a-z)/lambda

.PHONY: template
template: ## compare template.yaml with the code, and lint it if cfn-lint is installed
	$(GOTEST) -count=1 -v ./test/template

.PHONY: invoke
invoke: ## every event of infra/events through sam local (needs sam and Docker; see docs/aws.md)
	sam build
	@for e in infra/events/*.json; do case $$(basename $$e) in \
	  upload-*) f=UploadFunction;; catalog-*) f=CatalogFunction;; addbyurl-*) f=AddByURLFunction;; fetch-*) f=FetchFunction;; *) f=HashFunction;; esac; \
	  echo "$$f $$e"; sam local invoke $$f --event $$e --env-vars infra/env.local.json || exit 1; done

.PHONY: runtime
runtime: deps emulator ## the functions under AWS's Lambda emulator, over S3 and SQS (about three minutes)
	$(GOTEST) -json ./test/lambda | $(STRICT)

.PHONY: check
check: ## formatting, vet, staticcheck, known vulnerabilities, races
	@test -z "$$($(GO) tool gofumpt -l .)" || { $(GO) tool gofumpt -l .; echo 'run: go tool gofumpt -w .'; exit 1; }
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(GO) -C tools vet ./...
	$(GO) tool staticcheck ./...
	$(GO) tool govulncheck ./... || test $$? -ne 3
	CGO_ENABLED=1 $(GOTEST) -race -skip '^TestDeep' $(UNIT)

.PHONY: fuzz
fuzz: ## every fuzz target for a while (FUZZTIME=10s)
	@for p in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -h '^func Fuzz' $$p/*_test.go | sed 's/func \(Fuzz[A-Za-z0-9_]*\).*/\1/'); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(or $(FUZZTIME),10s) -fuzzminimizetime 10x $$p || exit 1; done; done

.PHONY: bench
bench: deps emulator ## throughput, memory and size, as ratios to the usual tools
	$(GO) run ./test/bench

.PHONY: benchmarks
benchmarks: deps emulator servers ## measure, and write docs/benchmarks.md and its plots from the numbers (BENCH='-only raw')
	@$(GO) run ./test/bench -json docs/benchmarks.json $(BENCH); missed=$$?; \
	$(GO) run ./test/bench -page docs/benchmarks.json && exit $$missed

.PHONY: dist
dist: ## release binaries in dist/, with checksums and bills of materials (CycloneDX)
	@rm -rf dist && mkdir dist
	@for t in amd64: arm64: arm:6 arm:7; do a=$${t%%:*}; v=$${t##*:}; \
	  n=dist/imageroot-linux-$$a$${v:+v$$v}; echo $$n; \
	  GOOS=linux GOARCH=$$a GOARM=$$v $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $$n ./local && \
	  $(GO) -C tools tool cyclonedx-gomod bin -json -std -noserial -notimestamp -version '$(VERSION)' -output ../$$n.cdx.json ../$$n || exit 1; done
	@cd dist && sha256sum imageroot-* > SHA256SUMS && cat SHA256SUMS

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist out
