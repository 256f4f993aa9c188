# `make demo` and `make test` need nothing but Python 3.11 and, for mounting, libfuse (fetched by apt).
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
ECOSYSTEM_STAMP := $(VENV)/.installed-ecosystem
# parts of `make bench`: cold, training, large, warm, scale, writing, metrics, idle, soak, slopes, write_rates, train
NAMES := all

# tests wait more than they compute; those of one file stay together, for they share mounts
JOBS := 3
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder

# the tests start hundreds of mounts, each of which would compile the package where this is set
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install fuse test-tools demo unit test test-long fuzz soak pythons docs mutants house ecosystem desktop newcomer check format bench bench-cold bench-train clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with the package and what its tests need

$(STAMP): pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

fuse: ## see to libfuse 3, by apt and sudo where it is missing
	@sh tests/install-fuse.sh

test-tools: ## see to what the tests try a mount with, likewise
	@sh tests/install-fuse.sh --tests

demo: $(STAMP) fuse ## serve sample images, mount them, show them, unmount
	$(BIN)/lightlyfs demo

unit: $(STAMP) ## the tests without threads, sockets or mounts: seconds
	$(BIN)/pytest -q $(PARALLEL) tests/unit

test: $(STAMP) test-tools ## all tests but the long ones
	$(BIN)/pytest -q $(PARALLEL) -m 'not long and not desktop and not ecosystem'

test-long: $(STAMP) test-tools ## the tests that take minutes
	$(BIN)/pytest -q -m long

fuzz: $(STAMP) ## ten minutes of odd and damaged data for every decoder
	LIGHTLYFS_FUZZ_S=600 $(BIN)/pytest -q --timeout 0 tests/fuzz

soak: $(STAMP) test-tools ## twenty minutes of everything at once over a server and a network that fail
	LIGHTLYFS_SOAK_S=1200 $(BIN)/pytest -q -s tests/mount/test_mixed_load.py

pythons: $(STAMP) ## the unit tests on each Python found, and on the lowest versions allowed
	$(BIN)/python tests/pythons.py

docs: $(STAMP) ## draw the imports of the rooms; check every text, and run the commands in it
	$(BIN)/python tests/rooms.py
	$(BIN)/pytest -q $(PARALLEL) tests/docs

newcomer: $(STAMP) fuse ## install as a newcomer does, in an empty home, and run every line of the README
	PYTHONPATH=tests $(BIN)/python tests/docs/newcomer.py

mutants: $(STAMP) ## change the code in small ways, and see whether the tests notice; an hour
	$(BIN)/pip install --quiet --editable '.[dev,mutants]'
	$(BIN)/python tests/mutants.py

house: $(STAMP) ## how far each kind of call travels through the code
	PYTHONPATH=tests $(BIN)/python tests/house.py

ecosystem: $(ECOSYSTEM_STAMP) ## try Dask, Ray, Hugging Face datasets and others; installs them
	@sh tests/install-fuse.sh
	$(BIN)/pytest -q -m ecosystem tests/ecosystem

$(ECOSYSTEM_STAMP): pyproject.toml $(STAMP)
	$(BIN)/pip install --quiet --editable '.[dev,ecosystem]'
	touch $@

desktop: $(STAMP) ## try real file managers on a virtual screen; fetches them by apt
	@sh tests/install-fuse.sh --desktop
	$(BIN)/pytest -q -s -m desktop tests/desktop

check: $(STAMP) ## format, lint, types, the map of the rooms
	$(BIN)/ruff format --check lightlyfs tests
	$(BIN)/ruff check lightlyfs tests
	$(BIN)/mypy -p lightlyfs
	$(BIN)/python tests/rooms.py

format: $(STAMP) ## put the code into shape
	$(BIN)/ruff format lightlyfs tests
	$(BIN)/ruff check --fix lightlyfs tests

bench: $(BENCH_STAMP) ## measure, beside the local disk, downloads and other mounts: quarter of an hour
	@sh tests/install-fuse.sh --bench
	$(BIN)/python tests/bench/run.py $(NAMES)

bench-cold: $(BENCH_STAMP) ## measure cold reading alone, beside rclone mount at its best flags: ten minutes
	@sh tests/install-fuse.sh --bench
	$(BIN)/python tests/bench/run.py cold

bench-train: $(BENCH_STAMP) ## measure data loaders of torch, beside those that are installed: ten minutes
	@sh tests/install-fuse.sh --bench
	$(BIN)/pip install --quiet --editable '.[torch]'
	$(BIN)/python tests/bench/run.py train

$(BENCH_STAMP): pyproject.toml $(STAMP)
	$(BIN)/pip install --quiet --editable '.[dev,bench]'
	touch $@

clean: ## remove what was made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
