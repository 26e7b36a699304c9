# Everything the project needs is made here or fetched by scripts/debian; once it
# is there, nothing asks the network again.

SHELL := /bin/bash

# Where transparent huge pages are always on, Go's heap would take a few pages of 2 MiB
# more than it uses; guests' memory has advice of its own. It is GODEBUG's default.
GO_STATIC   := CGO_ENABLED=0 go build -buildvcs=auto -trimpath -ldflags "-s -w -X runtime.godebugDefault=disablethp=1"
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

FUZZTIME ?= 20000x
# More words for go test, as -count=1.
TESTFLAGS ?=
# The lab's own, if it was fetched (see scripts/debian).
QEMU := build/lab/qemu/qemu-system-x86_64
# More words for disco run and disco lab.
ARGS ?=
# More words for disco bench share, and for disco bench net.
SHARE ?=
NET ?=

# Tests of a ring have its prefix; those without one are pure.
packages_with = $(sort $(dir $(shell grep -lr --include='*_test.go' '^func $(1)' .)))

# A host whose CPU has no virtualization for KVM to use runs its guests in the lab.
NEEDS_LAB := $(shell grep -qwE 'vmx|svm' /proc/cpuinfo && [ -w /dev/kvm ] || echo lab)

.PHONY: help
help: ## list the targets
	@echo "disco: a virtual machine monitor for NUMA hosts, on KVM"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "ARGS=… adds words to disco run and disco lab; FUZZTIME=… is inputs (20000x) or time (10m) per fuzz target"

.PHONY: build
build: tiny ## build bin/disco, a static program
	@$(GO_STATIC) -o bin/disco ./cmd/disco

.PHONY: run
run: build guest $(NEEDS_LAB) ## boot the default guest: a shell on a terminal, else what it sees
	@bin/disco run $(ARGS)

.PHONY: test
test: test-pure test-host test-kvm test-lab ## run all four rings of tests

.PHONY: test-pure
test-pure: tiny ## tests that need no rights, with the race detector
	@scripts/ring pure go test -race -v -skip '^Test(Host|KVM|Lab)' $(TESTFLAGS) ./...

.PHONY: test-host
test-host: tiny images tcpdump ## tests that need root, or memfd, tap or namespaces
	@scripts/ring host go test -race -v -run '^TestHost' $(TESTFLAGS) $(call packages_with,TestHost)

.PHONY: test-kvm
test-kvm: tiny ## tests that need /dev/kvm: tiny guests, directly on this host
	@scripts/ring kvm go test -v -run '^TestKVM' -count=1 $(call packages_with,TestKVM)
	@scripts/ring kvm-race go test -race -v -run '^TestKVM' -count=1 $(call packages_with,TestKVM)

.PHONY: test-lab
test-lab: build guest lab ## tests with Linux guests, inside the lab
	@CGO_ENABLED=0 go test -c -o build/test/lab.test ./integration
	@scripts/ring lab-outside timeout -k 20 300 env CGO_ENABLED=0 go test -v -count=1 -run '^TestLab' ./integration/lab
	@scripts/ring lab scripts/lab-tests build/test/lab.test '^TestLab' '^TestLabNodes' --steady --nodes 1 --cpus 2 $(ARGS)
	@scripts/ring lab-nodes scripts/lab-tests build/test/lab.test '^TestLabNodes' '^TestLabNodesStress' --steady --nodes 2 --cpus 2 $(ARGS)

.PHONY: bench-boot
bench-boot: build guest lab ## measure a boot beside QEMU's microvm and gokvm, in the lab
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o build/bench/ ./integration/bench/boot github.com/bobuhiro11/gokvm
	@timeout -k 20 1200 bin/disco lab $(ARGS) -- build/bench/boot $(if $(wildcard $(QEMU)),-qemu $(QEMU))
	@go run ./integration/bench/plot build/bench/boot.json

.PHONY: bench-disk
bench-disk: build guest lab ## measure a guest's disk beside QEMU's microvm, in the lab
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o build/bench/ ./integration/bench/disk
	@timeout -k 20 1800 bin/disco lab --steady --nodes 1 --cpus 2 $(ARGS) -- build/bench/disk $(if $(wildcard $(QEMU)),-qemu $(QEMU))
	@go run ./integration/bench/plot build/bench/disk.json

# An emulated host may be lost; the next goes on where it was.
.PHONY: bench-share
bench-share: build guest image lab ## measure how much memory guests of one image take together, in the lab
	@mkdir -p build/bench && rm -f build/bench/share.json
	@for try in 1 2 3 4; do \
		timeout -k 20 7200 bin/disco lab --steady --nodes 1 --cpus 1 --memory 8G $(ARGS) -- bin/disco bench share --resume --timeout 20m --settle 10m --out build/bench/share $(SHARE) && break; \
		[ $$? = 1 ] && [ $$try != 4 ] || exit 1; \
	done
	@go run ./integration/bench/plot build/bench/share.json

# An emulated host may be lost; the next goes on where it was.
.PHONY: bench-net
bench-net: build guest lab ## measure how guests exchange data, beside QEMU's on taps, in the lab
	@mkdir -p build/bench && rm -f build/bench/net.json
	@status=1; for try in 1 2 3; do \
		timeout -k 20 2700 bin/disco lab --steady --nodes 1 --cpus 1 --memory 6G $(ARGS) -- bin/disco bench net --resume --out build/bench/net $(NET) && status=0 && break; \
		[ $$? = 1 ] || break; \
	done; \
	go run ./integration/bench/plot build/bench/net.json && exit $$status

.PHONY: test-folder
test-folder: build guest stress lab ## try POSIX and load on a shared folder, in a guest, in the lab: some twenty minutes
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o build/guest/posix ./integration/guest/posix
	@timeout -k 20 2400 bin/disco lab --steady --nodes 1 --cpus 1 --memory 4G $(ARGS) -- scripts/posix-folder build/guest/posix build/guest/stress

.PHONY: soak-memory
soak-memory: tiny ## ten million checked writes while pages move and are copied: minutes
	@DISCO_COHERENCE_WRITES=10000000 go test -v -count=1 -timeout 30m -run '^TestKVMCoherence$$' ./integration

# An emulated host may be lost; the next goes on where it was.
.PHONY: bench-numa
bench-numa: build guest lab ## measure how local a guest's memory is, by policy, in labs of 2 and 4 nodes: an hour
	@mkdir -p build/bench; for nodes in 2 4; do \
		rm -f build/bench/numa-$$nodes.json; \
		for try in 1 2 3 4; do \
			timeout -k 20 7200 bin/disco lab --steady --nodes $$nodes --cpus $$nodes $(ARGS) -- bin/disco bench numa --resume \
				--cpus $$nodes --size 4M --rounds $$((96 / nodes)) --visits $$((120000 / nodes)) --pause 200ms --boot-timeout 5m \
				--out build/bench/numa-$$nodes && continue 2; \
			[ $$? = 1 ] || exit 1; \
		done; \
		exit 1; \
	done

.PHONY: bench-sched
bench-sched: build guest lab ## measure how tickets divide CPUs, among tiny guests on this host and Linux guests in the lab: 20 minutes
	@mkdir -p build/bench
	@timeout -k 20 3600 bin/disco bench sched --many 1000 --out build/bench/sched $(ARGS)
	@timeout -k 20 1200 bin/disco lab --steady --nodes 1 --cpus 1 -- bin/disco bench sched --linux --out build/bench/sched-linux

.PHONY: bench-acts
bench-acts: build lab ## time what is done to pages, here and in the lab
	@bin/disco bench acts
	@bin/disco lab $(ARGS) -- bin/disco bench acts

.PHONY: fuzz
fuzz: tiny ## run every fuzz target, FUZZTIME each
	@scripts/fuzz $(FUZZTIME)

.PHONY: guest
guest: ## fetch the default guest's kernel and build its initrd
	@scripts/debian guest
	@if [ -e build/guest/fetched ]; then $(MAKE) -s build/guest/initrd.img build/guest/numa.img build/guest/storage.img build/guest/peer.img build/guest/data.img; fi

build/guest/initrd.img: build/guest/fetched integration/guest/mkinitrd/udhcpc.sh $(shell find integration/guest integration/initramfs -name '*.go')
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o build/guest/init ./integration/guest/init
	@go run ./integration/guest/mkinitrd -o $@ -init build/guest/init -busybox build/guest/busybox -modules build/guest/modules

# The benchmark's guest: one program, and the vsock by which it is told what to do.
build/guest/numa.img: build/guest/fetched $(shell find integration/guest/numa integration/guest/workload integration/guest/mkinitrd integration/initramfs -name '*.go')
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o build/guest/numa ./integration/guest/numa
	@go run ./integration/guest/mkinitrd -o $@ -init build/guest/numa -drivers virtio_pci,vmw_vsock_virtio_transport -modules build/guest/modules

# The guest of the benchmarks of disks; QEMU's microvm has its disks on virtio-mmio.
build/guest/storage.img: build/guest/fetched $(shell find integration/guest/storage integration/guest/mkinitrd integration/initramfs -name '*.go')
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o build/guest/storage ./integration/guest/storage
	@go run ./integration/guest/mkinitrd -o $@ -init build/guest/storage -drivers virtio_pci,virtio_mmio,virtio_blk -modules build/guest/modules

# The guests of the benchmark of networks and of the test of NFS, and their disk.
build/guest/peer.img: build/guest/fetched $(shell find integration/guest/peer integration/guest/solo integration/guest/mkinitrd integration/initramfs integration/guest/guest.go -name '*.go')
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o build/guest/peer ./integration/guest/peer
	@go run ./integration/guest/mkinitrd -o $@ -init build/guest/peer -drivers virtio_pci,virtio_mmio,virtio_blk,virtio_net,nfsd,nfsv4,virtiofs -modules build/guest/modules

build/guest/data.img: $(wildcard integration/guest/mkdata/*.go) integration/guest/guest.go
	@go run ./integration/guest/mkdata -o $@

.PHONY: stress
stress: guest ## fetch stress-ng and build an initrd with it
	@scripts/debian stress
	@if [ -e build/guest/stress ]; then $(MAKE) -s build/guest/stress.img; fi

build/guest/stress.img: build/guest/stress build/guest/initrd.img
	@go run ./integration/guest/mkinitrd -o $@ -init build/guest/init -busybox build/guest/busybox -modules build/guest/modules -add stress=build/guest/stress

# Too long for the lab ring.
.PHONY: soak-net
soak-net: ## ten million checked frames between two guests that write to all of it meanwhile: a quarter of an hour
	DISCO_SOAK_FRAMES=10000000 go test -v -count=1 -timeout 12h -run '^TestHostSoak$$' ./net/segment

.PHONY: soak-nodes
soak-nodes: build stress lab ## stress-ng for 3 minutes on two nodes while pages move far too eagerly
	@CGO_ENABLED=0 go test -c -o build/test/lab.test ./integration
	@DISCO_STRESS=180 bin/disco lab --steady --nodes 2 --cpus 2 --memory 4G $(ARGS) -- build/test/lab.test -test.v -test.run '^TestLabNodesStress$$' -test.timeout 20m

# Each kill takes a process of its own.
.PHONY: soak-disk
soak-disk: images ## kill a program that writes to disks 1000 times, and cut the power 200,000 times: minutes
	@DISCO_KILLS=1000 go test -v -count=1 -timeout 30m -run '^TestHostKill$$' ./disk
	@DISCO_CUTS=200000 go test -v -count=1 -timeout 30m -run '^TestPowerCuts$$' ./disk/qcow2

.PHONY: images
images: ## fetch qemu-img, which the tests of disk images are held against
	@scripts/debian images

.PHONY: tcpdump
tcpdump: ## fetch tcpdump, which captures are held against
	@scripts/debian tcpdump

.PHONY: image
image: ## make a disk image of a small Debian, build/image/debian.raw and .qcow2
	@scripts/debian image

.PHONY: lab
lab: ## fetch what the lab needs: its kernel, and QEMU
	@scripts/debian lab
	@scripts/debian qemu

.PHONY: lint
lint: tiny build/tools/staticcheck ## gofmt, go vet and staticcheck
	@out=$$(gofmt -l .); if [ -n "$$out" ]; then echo "not gofmt's style:"; echo "$$out"; exit 1; fi
	@go vet ./...
	@build/tools/staticcheck ./...
	@for script in scripts/* .ci/run; do bash -n $$script || exit 1; done

build/tools/staticcheck:
	@GOBIN=$(CURDIR)/build/tools go install $(STATICCHECK)

.PHONY: clean
clean: ## remove what was built, but not what was fetched
	@rm -rf bin build/test build/tools build/guest/init build/guest/initrd.img build/guest/numa build/guest/numa.img build/guest/storage build/guest/storage.img build/guest/peer build/guest/peer.img build/guest/data.img build/guest/stress.img $(TINY_ELFS)

.PHONY: distclean
distclean: clean ## remove what was fetched, too
	@rm -rf build

include integration/tiny/tiny.mk
