# The tiny guests: integration/tiny/src/NAME.S -> integration/tiny/elf/NAME.elf,
# which package tiny embeds. Included by the Makefile; needs gcc and binutils.

TINY_DIR   := integration/tiny
TINY_SRCS  := $(wildcard $(TINY_DIR)/src/*.S)
TINY_ELFS  := $(patsubst $(TINY_DIR)/src/%.S,$(TINY_DIR)/elf/%.elf,$(TINY_SRCS))
TINY_CC    ?= gcc
TINY_FLAGS := -m64 -nostdlib -static -no-pie -Wl,-N,-Ttext=0x100000,--build-id=none,-z,noexecstack,--no-warn-rwx-segments,-s

# A PVH guest is found by its note alone.
$(TINY_DIR)/elf/pvh.elf: TINY_FLAGS := $(TINY_FLAGS) -Wl,-e,0,--section-start=.note.Xen=0x110000

# Constants are a segment of their own, whole pages in the file too.
$(TINY_DIR)/elf/constants.elf: TINY_FLAGS := $(filter-out -Wl%,$(TINY_FLAGS)) -Wl,-Ttext=0x101000,--build-id=none,-z,noexecstack,-z,max-page-size=4096,-z,separate-code,-s

.PHONY: tiny
tiny: $(TINY_ELFS) ## build the tiny test guests

$(TINY_DIR)/elf/%.elf: $(TINY_DIR)/src/%.S $(wildcard $(TINY_DIR)/src/*.h) $(TINY_DIR)/tiny.mk
	@mkdir -p $(@D)
	@$(TINY_CC) $(TINY_FLAGS) -o $@.tmp $< && mv $@.tmp $@
