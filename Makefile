# The only entry: people and CI call the same targets. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# `ci` builds quickly and is for tests and test images; `release` is for released images and benchmarks.
export PROFILE ?= ci
export FLYWHEEL_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/flywheel
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# Name of the local cluster, and its size beside one system node.
export FLYWHEEL_CLUSTER ?= default
A100 ?= 1
T4 ?= 1
KWOK ?= 0
# Values of the chart; with CLUSTER=current give your own, with the registry of `make push`.
VALUES ?= examples/local-cluster-values.yaml

# Not `:=`: a target may choose another profile.
BIN = $(CARGO_TARGET_DIR)/$(PROFILE)
TORCH := $(FLYWHEEL_CACHE)/libtorch-2.13.0-cpu
PYTHON := $(FLYWHEEL_CACHE)/python
PEERS_PYTHON := $(FLYWHEEL_CACHE)/peers-python
KSERVE_PYTHON := $(FLYWHEEL_CACHE)/kserve-python
EXAMPLE_PYTHON := $(FLYWHEEL_CACHE)/example-python
EXAMPLE := $(FLYWHEEL_CACHE)/example
IMAGES = $(FLYWHEEL_CACHE)/images/$(PROFILE)
LOCALCLUSTER = $(BIN)/flywheel-localcluster
CARGO := cargo
# What links libtorch finds it by these, at build and at run time.
WITH_TORCH := LIBTORCH=$(TORCH) LD_LIBRARY_PATH=$(TORCH)/lib

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: quickstart
quickstart: ## Everything once: cluster, chart, a training, a service, answers
	@scripts/quickstart.sh

.PHONY: demo-flywheel
demo-flywheel: build ## A service learns from its clients, live on the running cluster, 6 minutes (needs T4=2, install, example-data)
	@scripts/demo-flywheel.sh

# --- what the machine needs -------------------------------------------------------------------------------------------
.PHONY: packages
packages:
	@scripts/packages.sh

$(TORCH)/build-version: scripts/setup-libtorch.sh | packages
	@scripts/setup-libtorch.sh >/dev/null
	@touch $@

# transformers and its torch for parity tests and benchmarks, TensorBoard and MLflow for what is told to them.
$(PYTHON)/.ready: tests/python/requirements.txt | packages
	@echo "python: installing transformers, torch and MLflow (about 4 GB, once)" >&2
	@python3 -m venv $(PYTHON) && $(PYTHON)/bin/pip install -q --disable-pip-version-check -r $< && touch $@

# A venv that has what the tests have beside its own: a second copy would be 4 GB.
over_tests = python3 -m venv $(1) && $(PYTHON)/bin/python -c 'import site; print(site.getsitepackages()[0])' > \
  "$$($(1)/bin/python -c 'import site; print(site.getsitepackages()[0])')/tests.pth"

$(PEERS_PYTHON)/.ready: bench/peers/serve_requirements.txt $(PYTHON)/.ready
	@$(call over_tests,$(PEERS_PYTHON))
	@$(PEERS_PYTHON)/bin/pip install -q --disable-pip-version-check -r $< && touch $@

$(KSERVE_PYTHON)/.ready: tests/python/kserve_requirements.txt $(PYTHON)/.ready
	@$(call over_tests,$(KSERVE_PYTHON))
	@$(KSERVE_PYTHON)/bin/pip install -q --disable-pip-version-check --no-deps -r $< && touch $@

$(EXAMPLE_PYTHON)/.ready: examples/intent/requirements.txt | packages
	@python3 -m venv $(EXAMPLE_PYTHON) && $(EXAMPLE_PYTHON)/bin/pip install -q --disable-pip-version-check --no-deps -r $< && touch $@

.PHONY: setup
setup: $(TORCH)/build-version $(PYTHON)/.ready $(KSERVE_PYTHON)/.ready $(EXAMPLE_PYTHON)/.ready programs ## Download and build all that tests need

.PHONY: programs
programs: localcluster ## Kubernetes, etcd, containerd, CoreDNS, MinIO, helm: built once, 11 minutes on two cores
	@$(LOCALCLUSTER) programs --install-packages >/dev/null

# --- our own programs -------------------------------------------------------------------------------------------------
.PHONY: localcluster
localcluster: | packages
	@# Of the workspace, so that its dependencies have the features of every other build and are built once.
	@$(CARGO) build -q --profile $(PROFILE) --workspace --bin flywheel-localcluster

.PHONY: build
build: $(TORCH)/build-version ## Operator, trainer, server, localcluster, kubectl plugin
	@# The whole workspace, as the tests do: one set of features, so that dependencies are built once.
	@$(WITH_TORCH) $(CARGO) build --profile $(PROFILE) --workspace --bins

.PHONY: nccl
nccl: $(PYTHON)/.ready ## libflywheel_nccl.so for images with CUDA: trainings on several GPUs load it (NCCL_OUT=)
	@FLYWHEEL_PYTHON=$(PYTHON)/bin/python scripts/nccl.sh $(or $(NCCL_OUT),$(BIN))

.PHONY: images
images: build ## Container images as OCI archives
	@$(LOCALCLUSTER) images --operator $(BIN)/flywheel-operator --trainer $(BIN)/flywheel-trainer --server $(BIN)/flywheel-server \
	  --libtorch $(TORCH) --out $(IMAGES)

.PHONY: push
push: ## Push released images to REGISTRY=... (TAG=; needs skopeo)
	@: $${REGISTRY:?say where: make push REGISTRY=registry.example.com/team}
	@command -v skopeo >/dev/null || { echo "push: skopeo is missing (apt-get install skopeo)" >&2; exit 1; }
	@$(MAKE) images PROFILE=release
	@for image in operator trainer server; do \
	  skopeo copy oci-archive:$(FLYWHEEL_CACHE)/images/release/$$image.tar docker://$$REGISTRY/flywheel-$$image:$${TAG:-dev}; done

.PHONY: crds
crds: generators ## Write crds/, the chart's copies and docs/api.md from crates/api
	@$(BIN)/crdgen crds
	@$(BIN)/crdgen charts/flywheel/crds
	@$(BIN)/apidocs docs/api.md

.PHONY: generators
generators:
	@$(CARGO) build -q --profile $(PROFILE) --workspace --bin crdgen --bin apidocs

# --- the local cluster ------------------------------------------------------------------------------------------------
.PHONY: cluster
cluster: programs ## Start the local cluster (A100=1 T4=1 KWOK=0 nodes); with CLUSTER=current use your own
	@$(LOCALCLUSTER) up --a100 $(A100) --t4 $(T4) --kwok $(KWOK)

.PHONY: cluster-down
cluster-down: localcluster ## End it; nothing stays but the cache and four empty folders
	@$(LOCALCLUSTER) down

.PHONY: install
install: images ## Load the images and install or upgrade the chart (VALUES=)
	@# The tag stays the same from build to build; the image's digest in an annotation brings new pods.
	@[ "$${CLUSTER:-}" = current ] || $(LOCALCLUSTER) load-image $(IMAGES)/*.tar
	@$(LOCALCLUSTER) kubectl apply --server-side --force-conflicts --field-manager=helm -f crds >/dev/null
	@$(LOCALCLUSTER) helm upgrade --install flywheel charts/flywheel --namespace flywheel-system --create-namespace \
	  --values $(VALUES) --set-string podAnnotations.image-digest=$$(sha256sum <$(IMAGES)/operator.tar | cut -c1-64) --wait --timeout 2m >/dev/null

.PHONY: example-data
example-data: $(EXAMPLE_PYTHON)/.ready ## The example's data and encoder, into the cluster's object store
	@variables=$$($(LOCALCLUSTER) env) && eval "$$variables" && $(EXAMPLE_PYTHON)/bin/python examples/intent/prepare.py --out $(EXAMPLE) --bucket flywheel

# --- checks -----------------------------------------------------------------------------------------------------------
.PHONY: lint
lint: $(TORCH)/build-version generators ## Formatting, clippy with warnings denied, generated files
	@$(CARGO) fmt --all --check
	@$(WITH_TORCH) $(CARGO) clippy -q --profile $(PROFILE) --workspace --all-targets -- -D warnings
	@$(BIN)/crdgen --check crds
	@$(BIN)/crdgen --check charts/flywheel/crds
	@$(BIN)/apidocs --check docs/api.md

.PHONY: deny
deny: ## Licences and sources of dependencies (needs cargo-deny)
	@$(CARGO) deny check bans licenses sources

.PHONY: test
test: ## What CI runs
	@scripts/test.sh

.PHONY: test-all
test-all: ## And what takes longer: the whole life of local clusters, the oldest API server
	@ALL=1 scripts/test.sh

.PHONY: fuzz
fuzz: ## The parsers of what clients send (FUZZ_SECONDS=10 for each of TARGETS=)
	@scripts/fuzz.sh

.PHONY: test-faults
test-faults: ## Trainers and servers killed, stopped, cut off on the running cluster; their times (TRIALS=20; needs A100=2 T4=2, install, example-data)
	@variables=$$($(LOCALCLUSTER) env) && eval "$$variables" && export TRIALS=$${TRIALS:-20} FAULT_ROWS=$$(mktemp) && \
	  $(WITH_TORCH) $(CARGO) test --profile $(PROFILE) --locked --workspace --test faults -- --nocapture && python3 bench/faults.py $$FAULT_ROWS

# The libraries of the tests' PyTorch, which has CUDA, and what `make nccl` builds; the driver's are the machine's.
WITH_CUDA = LD_LIBRARY_PATH=$$($(PYTHON)/bin/python -c "import glob, sysconfig; p = sysconfig.get_path('purelib'); \
  print(':'.join([p + '/torch/lib', *glob.glob(p + '/nvidia/*/lib')]))"):$(BIN):$$LD_LIBRARY_PATH

.PHONY: test-cuda
test-cuda: $(TORCH)/build-version nccl ## Training on this machine's GPU
	@LIBTORCH=$(TORCH) $(WITH_CUDA) $(CARGO) test --profile $(PROFILE) --locked --workspace --test cuda -- --ignored --nocapture --test-threads 1

.PHONY: bench-spine
bench-spine: PROFILE := release
bench-spine: build $(PYTHON)/.ready $(EXAMPLE_PYTHON)/.ready ## Accuracy, latencies, weight (ONLY= SEEDS= DATA= MINUTES=)
	@$(EXAMPLE_PYTHON)/bin/python examples/intent/prepare.py --out $(EXAMPLE)
	@if [[ ",$${ONLY:-accuracy,latency,operator}," == *,latency,* || ",$${ONLY:-accuracy,latency,operator}," == *,operator,* ]]; then \
	  variables=$$($(LOCALCLUSTER) env) && eval "$$variables" && scripts/object-store.sh; fi; \
	KUBECTL="$$($(LOCALCLUSTER) programs | grep '/kubectl$$')" OPERATOR=$(BIN)/flywheel-operator TRAINER=$(BIN)/flywheel-trainer \
	ENCODER=$(EXAMPLE)/minilm-l6 FLYWHEEL_PYTHON=$(PYTHON)/bin/python LD_LIBRARY_PATH=$(TORCH)/lib python3 bench/spine.py

.PHONY: bench-serve
bench-serve: PROFILE := release
bench-serve: build $(PEERS_PYTHON)/.ready $(EXAMPLE_PYTHON)/.ready ## Our server beside ONNX Runtime, OpenVINO, FastAPI (DATA= ONLY= ARTIFACT=)
	@$(EXAMPLE_PYTHON)/bin/python examples/intent/prepare.py --out $(EXAMPLE)
	@$(WITH_TORCH) $(CARGO) build -q --profile $(PROFILE) --workspace --example answers --example counting
	@ANSWERS=$(BIN)/examples/answers COUNTING=$(BIN)/examples/counting SERVER=$(BIN)/flywheel-server TRAINER=$(BIN)/flywheel-trainer LOADGEN=$(BIN)/flywheel-loadgen \
	ENCODER=$(EXAMPLE)/minilm-l6 PEERS_PYTHON=$(PEERS_PYTHON)/bin/python LD_LIBRARY_PATH=$(TORCH)/lib python3 bench/serve.py

.PHONY: bench-update
bench-update: build ## Versions exchanged under load on the running cluster: times, failures (SWAPS=100 PODS=1; needs install, example-data)
	@variables=$$($(LOCALCLUSTER) env) && eval "$$variables" && scripts/object-store.sh && \
	KUBECTL="$$($(LOCALCLUSTER) programs | grep '/kubectl$$')" LOADGEN=$(BIN)/flywheel-loadgen EXAMPLE=$(EXAMPLE) python3 bench/update.py

.PHONY: bench-drain
bench-drain: build ## What clients notice while pods come, go and are killed on the running cluster (MINUTES=10 RATE=60; needs T4=4, install, example-data)
	@variables=$$($(LOCALCLUSTER) env) && eval "$$variables" && scripts/object-store.sh && \
	KUBECTL="$$($(LOCALCLUSTER) programs | grep '/kubectl$$')" LOADGEN=$(BIN)/flywheel-loadgen EXAMPLE=$(EXAMPLE) python3 bench/drain.py

.PHONY: bench-scale
bench-scale: PROFILE := release
bench-scale: localcluster ## How many objects one operator carries, on fake nodes: simulated (ONLY= OBJECTS=1000 LARGE=10000 REPEAT=3; needs A100=0 T4=0 KWOK=1, install PROFILE=release)
	@$(CARGO) build -q --profile $(PROFILE) --workspace --example bare_operator --example fake_pods
	@variables=$$($(LOCALCLUSTER) env) && eval "$$variables" && KUBECTL="$$($(LOCALCLUSTER) programs | grep '/kubectl$$')" \
	BARE_OPERATOR=$(BIN)/examples/bare_operator FAKE_PODS=$(BIN)/examples/fake_pods python3 bench/scale.py

.PHONY: bench-flywheel
bench-flywheel: PROFILE := release
bench-flywheel: build $(EXAMPLE_PYTHON)/.ready ## Drift verdicts and the whole loop on real text (DATA=<banking77> ONLY=drift,loop ARTIFACT=; the loop needs T4=2, install)
	@parts=,$${ONLY:-drift,loop},; bucket=; \
	if [[ $$parts == *,loop,* ]]; then \
	  variables=$$($(LOCALCLUSTER) env); eval "$$variables"; bucket="--bucket flywheel"; \
	  export KUBECTL="$$($(LOCALCLUSTER) programs | grep '/kubectl$$')"; fi; \
	$(EXAMPLE_PYTHON)/bin/python examples/intent/prepare.py --out $(EXAMPLE) $$bucket; \
	if [[ $$parts == *,drift,* ]]; then \
	  $(WITH_TORCH) $(CARGO) build -q --profile $(PROFILE) --workspace --example profile_texts --example drift_windows; fi; \
	PROFILE_TEXTS=$(BIN)/examples/profile_texts DRIFT_WINDOWS=$(BIN)/examples/drift_windows TRAINER=$(BIN)/flywheel-trainer \
	ENCODER=$(EXAMPLE)/minilm-l6 EXAMPLE=$(EXAMPLE) LD_LIBRARY_PATH=$(TORCH)/lib $(EXAMPLE_PYTHON)/bin/python bench/flywheel.py

.PHONY: bench-train
bench-train: PROFILE := release
bench-train: build $(PYTHON)/.ready $(EXAMPLE_PYTHON)/.ready ## One epoch of banking77, ours beside transformers (DATA= THREADS=1 ONLY= SKIP= DEVICE=cuda)
	@$(EXAMPLE_PYTHON)/bin/python examples/intent/prepare.py --out $(EXAMPLE)
	@TRAINER=$(BIN)/flywheel-trainer ENCODER=$(EXAMPLE)/minilm-l6 FLYWHEEL_PYTHON=$(PYTHON)/bin/python \
	$(if $(filter cuda,$(DEVICE)),$(WITH_CUDA),LD_LIBRARY_PATH=$(TORCH)/lib) python3 bench/train.py

.PHONY: fmt
fmt:
	@$(CARGO) fmt --all
