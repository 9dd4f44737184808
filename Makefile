# Everything runs inside .venv, which is built here from constraints.txt. `make help` lists the targets.
# Other versions: CONSTRAINTS=constraints-lowest.txt, or CONSTRAINTS=/dev/null for the newest, each with a VENV of its own.
PYTHONS := python3.11 python3.12 python3.13 python3 python
SUITS := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,$(PYTHONS),$(shell $(name) -c '$(SUITS)' 2>/dev/null && echo $(name))))
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
TORCH := $(shell sed -n 's/^ *"\(torch[<>=].*\)",$$/\1/p' pyproject.toml)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2
PROTOCOLS ?= $(basename $(notdir $(wildcard benchmarks/protocols/*.yaml)))

.PHONY: help venv quickstart test twins mutants golden lint types assets slow gpu bench tables docs clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

venv: $(INSTALLED)  ## build .venv

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "no Python of version 3.11 or newer; looked for: $(PYTHONS)" >&2; exit 2; }
	@echo "== install 1 of 3: a virtual environment in $(VENV)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== install 2 of 3: torch, the largest download; unpacking it takes a minute"
	$(BIN)/python -m pip install -c $(CONSTRAINTS) '$(TORCH)'
	@echo "== install 3 of 3: vidalign and the other packages"
	$(BIN)/python -m pip install -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

quickstart: $(INSTALLED)  ## align the shipped student by Astrolabe and write the report
	@echo "== quickstart: training, then evaluation and report"
	$(BIN)/vidalign train recipes/world/astrolabe.yaml --run runs/quickstart --resume
	@echo "next, play with it: $(BIN)/vidalign play runs/quickstart"
	@echo "next, make a clip:  $(BIN)/vidalign sample --run runs/quickstart --prompt 'a large red circle falls' --out clip.mp4"
	@echo "next, your recipe:  $(BIN)/vidalign new my.yaml --from world/astrolabe"

test: $(INSTALLED)  ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

twins: $(INSTALLED)  ## the CPU twins of the recipes at real size, in runs/twins: a minute
	rm -rf runs/twins
	$(BIN)/python tests/tiny/tiny_twins.py runs/twins
	cd runs/twins; bin=$(abspath $(BIN)); export VIDALIGN_CACHE=cache OMP_NUM_THREADS=1; \
	$$bin/vidalign collect twins/wan_1_3b/ar_copo_semi --out buffers/twin --groups 4 || exit 1; \
	for name in $(patsubst recipes/%.yaml,%,$(wildcard recipes/twins/*/*.yaml)); do \
		echo "== $$name"; $$bin/vidalign train $$name --run runs/$$name tracking.panel=plain || exit 1; \
	done

mutants: $(INSTALLED)  ## small mistakes in objectives, losses, rollout and engine that no test notices (an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/mutation/mutants.py run
	$(BIN)/python tests/mutation/mutants.py report --write

golden: $(INSTALLED)  ## all golden trajectories; REV=COMMIT compares with that commit, bit for bit
	OMP_NUM_THREADS=1 $(BIN)/python tests/golden/trajectories.py $(if $(REV),compare $(REV),check) --workers $(WORKERS)

slow: $(INSTALLED)  ## the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu"

gpu: $(INSTALLED)  ## the tests that need an accelerator, each against the CPU
	OMP_NUM_THREADS=4 $(BIN)/python -m pytest -m gpu tests/gpu

lint: $(INSTALLED)  ## ruff, its rules and its format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy
	$(BIN)/mypy

assets: $(INSTALLED)  ## rebuild the shipped weights from nothing (hours on 2 cores); resumes where it stopped
	$(BIN)/vidalign train world/pretrain/student --run runs/assets/student --resume
	$(BIN)/vidalign train world/pretrain/student_anneal --run runs/assets/student_anneal --resume
	$(BIN)/vidalign export --run runs/assets/student_anneal --out vidalign/weights/world/student.safetensors
	$(BIN)/vidalign train world/pretrain/teacher --run runs/assets/teacher --resume
	$(BIN)/vidalign export --run runs/assets/teacher --out vidalign/weights/world/teacher.safetensors --dtype float16
	$(BIN)/vidalign train events/pretrain/student --run runs/assets/events/student --resume
	$(BIN)/vidalign train events/pretrain/student_anneal --run runs/assets/events/student_anneal --resume
	mkdir -p vidalign/weights/events
	$(BIN)/vidalign export --run runs/assets/events/student_anneal --out vidalign/weights/events/student.safetensors --dtype float16
	$(BIN)/vidalign train events/pretrain/teacher --run runs/assets/events/teacher --resume
	$(BIN)/vidalign export --run runs/assets/events/teacher --out vidalign/weights/events/teacher.safetensors --dtype float16
	$(BIN)/vidalign train events/student_dmd --run runs/assets/events/student_dmd --resume
	$(BIN)/vidalign export --run runs/assets/events/student_dmd --out vidalign/weights/events/student_dmd.safetensors --dtype float16
	for name in tokens/pretrain/teacher tokens/pretrain/student pictures/pretrain/teacher pictures/pretrain/student; do \
		out=vidalign/weights/$$(dirname $$(dirname $$name))/$$(basename $$name).safetensors; \
		$(BIN)/vidalign train $$name --run runs/assets/$$name --resume && mkdir -p $$(dirname $$out) && \
		$(BIN)/vidalign export --run runs/assets/$$name --out $$out --dtype float16 || exit 1; \
	done
	for name in student_hints student_hints_h; do \
		$(BIN)/vidalign train rules/pretrain/$$name --run runs/assets/rules/$$name --resume || exit 1; \
	done
	for shipped in rules/teacher:380 rules/teacher_g:930 rules/student:210 rules/student_h:600 signs/teacher:540 signs/student:660; do \
		name=$${shipped%:*}; run=runs/assets/$$name; \
		$(BIN)/vidalign train $${name%/*}/pretrain/$${name#*/} --run $$run --resume && \
		$(BIN)/vidalign export --run $$run --step $${shipped#*:} --out vidalign/weights/$$name.safetensors --dtype float16 || exit 1; \
	done

bench: $(INSTALLED)  ## a small version of every protocol, on 2 cores; resumes where it stopped
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation examples/plugin_objective
	failed=0; $(BIN)/vidalign collect world/ar_copo_semi --out buffers/ar_copo || failed=$$?; \
	test $$failed -ne 130 || exit 130; \
	test -f runs/aligned/student.safetensors || $(BIN)/vidalign train world/astrolabe --run runs/aligned --resume || failed=$$?; \
	test $$failed -ne 130 || exit 130; \
	for protocol in $(PROTOCOLS); do \
		$(BIN)/vidalign bench run $$protocol --small || failed=$$?; \
		test $$failed -ne 130 || exit 130; \
		$(BIN)/vidalign bench report $$protocol-small || failed=$$?; \
	done; exit $$failed

tables: $(INSTALLED)  ## benchmarks/README.md and docs/tuning.md from benchmarks/results
	$(BIN)/python benchmarks/tables.py

docs: $(INSTALLED)  ## the documentation as static files, in site/; a broken link ends it
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict --site-dir site

clean:  ## remove caches and builds, keep .venv and runs
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache
