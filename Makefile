# Needs git, make and Python >= 3.11. Everything is installed into .venv, nothing outside of it.
PYTHON ?= python3
PY := .venv/bin/python
RUN := .venv/bin/rl-reasoner
TESTS ?= tests
FAST ?=
MARKED = $(if $(FAST),-m "not slow and not matrix")

SEED ?= 0

.PHONY: quickstart r1 test coverage lint bench real conformance resume-matrix properties hostile-tools browser scaling gpu docs tutorials schema fields versions latest hooks release-check clean

quickstart: .venv/user  ## install, then the main job: train a tiny mixture of experts to think
	$(RUN) train quickstart

r1: .venv/user  ## DeepSeek-R1's stages with a tiny mixture: a table of stage by task; continued where it was stopped
	@if test -f runs/r1/r1_tiny-$(SEED)/recipe.yaml; then $(RUN) train --resume runs/r1/r1_tiny-$(SEED); \
	  else $(RUN) train r1_tiny --run.seed $(SEED) --run.folder runs/r1/r1_tiny-$(SEED); fi

test: .venv/dev  ## install, then run the tests; FAST=1 leaves out those that train or start processes
	@$(PY) -m compileall -q rl_reasoner rewards recipes # once, not in each of hundreds of processes: PYTHONDONTWRITEBYTECODE may be set
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal --durations=20 $(MARKED) $(TESTS)

coverage: .venv/dev  ## `make test` with the share of lines that it runs (a sixth slower): at least 85%
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal --cov --cov-report=term --cov-fail-under=85

lint: .venv/dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-cache --no-logo

bench: .venv/dev  ## speed against peers, on this machine
	for bench in benchmarks/*.py; do $(PY) $$bench || exit 1; done

real: .venv/dev  ## a recipe with a real model, from nothing to its file of results: RECIPE=… SEED=… FLAGS=…; goes on where it was stopped
	@test -n "$(RECIPE)" || { echo "say which recipe: make real RECIPE=mbpp_qwen_coder SEED=0 (see benchmarks/real/run.py)"; exit 2; }
	$(PY) benchmarks/real/run.py $(RECIPE) --seed $(SEED) --data $(DATA) $(FLAGS)

conformance: .venv/dev  ## trl's own tests of its GRPO trainer, on ours; TRL is a folder with trl's tests
	@test -d "$(TRL)" || { echo "say where trl lies: make conformance TRL=path (git clone of huggingface/trl)"; exit 2; }
	$(PY) tests/conformance $(TRL)

resume-matrix: .venv/dev  ## kill -9 and resume at every point of the matrix; `make test` has some of them
	OMP_NUM_THREADS=1 $(PY) -m pytest -m matrix tests/training tests/pipeline tests/judging tests/distributed tests/project/test_real.py tests/project/test_real_run.py tests/project/test_splits.py

properties: .venv/dev  ## the property tests with a thousand fresh examples each; `make test` draws the same at each run
	OMP_NUM_THREADS=1 $(PY) -m pytest -m hypothesis --hypothesis-profile fresh

hostile-tools: .venv/dev  ## 2,048 completions whose tools raise, hang, exit, fork, print 10 MB: nothing ends, nothing is lost
	$(PY) benchmarks/hostile_tools.py

browser: .venv/dev  ## the report in a real browser, where playwright and Chromium are there
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/report/test_report_browser.py

scaling: .venv/dev  ## several processes: killed, told to stop, 200 steps; two hosts (as root); Ray where it is installed
	OMP_NUM_THREADS=1 $(PY) -m pytest -m matrix tests/distributed tests/scoring/test_ray_cluster.py tests/scoring/test_ray_hosts.py
	$(PY) benchmarks/processes.py

gpu: .venv/dev  ## the day of the card: one GPU measured in at most 40 minutes, a table in runs/gpu; FLAGS=… (see benchmarks/gpu.py)
	$(PY) benchmarks/gpu.py $(FLAGS)

docs: .venv/dev  ## the site, in build/site; nothing is fetched, every link is checked; search works from the folder, too
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

tutorials: .venv/dev  ## every block of README and docs at its full size, and what it prints into the tutorials; `make test` runs them tiny
	RL_REASONER_DOCS=full OMP_NUM_THREADS=1 COLUMNS=110 $(PY) -m pytest -n0 --timeout=3600 tests/project/test_readme.py tests/project/test_docs.py tests/project/test_notebook.py

versions:  ## the newest of everything, all tests, then constraints.txt anew; nothing is written when a test fails
	$(PYTHON) .ci/versions.py tested

latest:  ## each week: the newest of everything, beyond our ranges, too; which tests fail because of which package
	$(PYTHON) .ci/versions.py latest

hooks: .venv/dev  ## in this clone, a commit on main is refused where lint fails
	git config core.hooksPath .githooks

release-check: .venv/dev  ## version, wheel, README, and the wheel in an empty environment on each Python that is here
	$(PY) -m pip install --quiet -e '.[release]'
	bash .ci/release

schema: .venv/dev  ## after a change of the recipe's fields: the file that editors check YAML recipes by
	$(RUN) list schema > .schema && mv .schema recipes/recipe.schema.json

fields: .venv/dev  ## after a new trl, or other fields of recipes: the tables of fields and of combinations in the docs
	$(PY) docs/config_fields.py > .fields && mv .fields docs/reference/trl-config.md
	$(PY) docs/handover_fields.py
	$(PY) docs/matrix.py

DATA ?= ../shared/data

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rl-reasoner needs Python >= 3.11; name one with: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "python3 -m venv is missing; on Debian and Ubuntu: sudo apt install python3-venv"; exit 2; }

.venv/user: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing torch and the other packages into .venv; the first time this takes some minutes"
	$(PY) .ci/install.py -e .
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing what tests need into .venv; the first time this takes some minutes"
	$(PY) .ci/install.py -e '.[dev]'
	@touch $@ .venv/user

clean:
	rm -rf .venv build dist *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
