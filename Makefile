# stepdown: from LAION/COYO rows to one-, two-, four- and eight-step SDXL models. `make help` lists the targets.

# Another world: `make curate MANIFEST=manifests/sdxl RUN=runs/mine`.
MANIFEST ?= manifests/demo
RUN      ?= runs/demo
STAGE    ?= 2to1
DEVICE   ?= cpu
PROMPT   ?= large red circle in the centre, striped sky background
SEED     ?= 0

# Downloads, libtorch and compiled dependencies, shared by all clones on this machine.
STEPDOWN_CACHE ?= $(HOME)/.cache/stepdown
# A libtorch of your own: `make demo LIBTORCH=/path/to/libtorch`.
ifdef LIBTORCH
export LIBTORCH_IS_OURS := 0
endif
LIBTORCH ?= $(STEPDOWN_CACHE)/libtorch-2.11.0
export STEPDOWN_CACHE LIBTORCH

# Intermediate artefacts are shared, so that a second clone compiles this workspace alone; the programs are each
# clone's own. One profile everywhere: polars and torch-sys are compiled once.
clone := $(shell printf %s '$(CURDIR)' | cksum | cut -d' ' -f1)
export CARGO_BUILD_BUILD_DIR := $(STEPDOWN_CACHE)/build
export CARGO_TARGET_DIR := $(STEPDOWN_CACHE)/clones/$(clone)
export RUSTC_WORKSPACE_WRAPPER := $(CURDIR)/scripts/rustc.sh
bin := $(CARGO_TARGET_DIR)/release
cargo_deny := $(STEPDOWN_CACHE)/tools/bin/cargo-deny

stages := 128to32 32to8 8to4 4to2 2to1
before_32to8 := 128to32
before_8to4 := 32to8
before_4to2 := 8to4
before_2to1 := 4to2

# The files that each program publishes last.
curated := $(RUN)/curated/index.json
latents := $(RUN)/latents/index.json
exported = $(RUN)/stages/$(1)/export/model_index.json

# The rows of the demo world, known by its tables, point at a web server on loopback, which runs while they are fetched.
is_demo := $(shell grep -ls '{run}/world/' '$(MANIFEST)/data.toml')
DEMO_PORT ?= 18573
# Sound pictures beside the usual 200, which the stages would learn by heart.
DEMO_MORE ?= $(if $(filter %demo-long,$(MANIFEST)),2000,800)

.DEFAULT_GOAL := help
.PHONY: help setup build demo test curate encode-latents distill sample evaluate export pretrain bench lint

help: ## these lines
	@echo 'stepdown: make TARGET [MANIFEST=$(MANIFEST)] [RUN=$(RUN)] [DEVICE=$(DEVICE)]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## check the machine and bring libtorch into the cache
	@scripts/setup.sh '$(LIBTORCH)'

build: setup ## compile the programs
	@cargo build --release --locked --workspace --bins

demo: build ## the whole road on the embedded world: rows, shards, latents, five stages, pictures
	@$(MAKE) --no-print-directory curate encode-latents
	@$(MAKE) --no-print-directory distill STAGE=all
	@$(MAKE) --no-print-directory sample
	@echo 'Done. Look at $(RUN)/samples/, $(RUN)/curated/report.html and $(RUN)/stages/2to1/report.html'

ifneq ($(is_demo),)
curate: build ## rows -> filtered, downloaded, checked image shards
	@$(bin)/demo-world generate --world $(RUN)/world --port $(DEMO_PORT) --more-clean $(DEMO_MORE)
	@$(bin)/demo-world serve --world $(RUN)/world --port $(DEMO_PORT) -- \
	    $(bin)/curate --manifest $(MANIFEST) --run $(RUN)
else
curate: build
	@$(bin)/curate --manifest $(MANIFEST) --run $(RUN)
endif

encode-latents: build $(curated) ## image shards -> latents and text embeddings
	@$(bin)/encode-latents --manifest $(MANIFEST) --run $(RUN) --device $(DEVICE)

# One stage and, first, whatever it needs and lacks. A wrong name is the program's to refuse.
distill: build $(latents) $(if $(before_$(STAGE)),$(call exported,$(before_$(STAGE)))) ## one stage: STAGE=128to32 32to8 8to4 4to2 2to1, or all
	@$(bin)/distill --manifest $(MANIFEST) --run $(RUN) --device $(DEVICE) --stage $(STAGE)

$(curated):
	@$(MAKE) --no-print-directory curate
$(latents):
	@$(MAKE) --no-print-directory encode-latents
$(foreach stage,$(stages),$(call exported,$(stage))): $(RUN)/stages/%/export/model_index.json:
	@$(MAKE) --no-print-directory distill STAGE=$*

sample: build ## a picture from the base model in 32 steps and from each finished stage in its own
	@scripts/sample.sh '$(bin)' '$(MANIFEST)' '$(RUN)' '$(DEVICE)' '$(PROMPT)' '$(SEED)'

evaluate: build ## the paper's table, measured on this run
	@$(bin)/evaluate --manifest $(MANIFEST) --run $(RUN) --device $(DEVICE)

export: build ## every published form of the finished stages
	@$(bin)/export --manifest $(MANIFEST) --run $(RUN)

pretrain: build ## train the demo's base model again (hours)
	@$(bin)/pretrain --manifest $(MANIFEST)

# One thread for each program: tests run beside each other, and OpenMP's threads spin when there are too many.
test: build ## all tests: units, programs from outside, and the road twice
	@OMP_NUM_THREADS=1 STEPDOWN_BIN='$(bin)' cargo test --release --locked --workspace

bench: setup ## the kernels' benchmarks
	@cargo bench --locked --workspace

# Clippy takes the wrapper's place; an argument of each clone's own keeps it from another's findings.
lint: setup ## formatting, clippy and dependency checks, warnings as errors
	@cargo fmt --all --check
	@cargo clippy --release --locked --workspace --all-targets -- -D warnings --cfg 'clone="$(clone)"'
	@[ -x '$(cargo_deny)' ] || cargo install --quiet --locked --debug --root '$(STEPDOWN_CACHE)/tools' cargo-deny@0.20.2
	@'$(cargo_deny)' --log-level error --locked --offline check bans licenses sources
