# Targets name actions, or files inside .venv: never a file that is committed.
PLAN ?= laptop
JOBS ?= auto
ONLY ?=
STALE ?=
BENCH ?=
SCHEDULER ?=
FROM ?=
PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
LAB_ARGS ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
INSTALLED_UI := $(VENV)/.installed-ui
RUN := $(PY) -m reproduction
NO_BARS = [ -t 2 ] || export TQDM_DISABLE=1;# of a conversion, where they would fill a file
COLAB := .venv-colab/bin/python
OWNER = $(if $(filter command,$(origin NAME)),$(NAME))# not of the environment: WSL sets a NAME there
ADDRESSED = $(wildcard notebooks/*.ipynb docs/*.md book/*.md README.md CITATION.cff)
CHOSEN = --plan $(PLAN) $(if $(ONLY),--only '$(ONLY)')

ifeq ($(OS),Windows_NT)
$(error this needs Linux, macOS or WSL: on Windows, install WSL and run it there)
endif

# make takes any variable, so that plan=smoke would run the plan laptop without a word
KNOWN := PLAN JOBS ONLY STALE BENCH SCHEDULER FROM PYTHON PIP_ARGS TORCH_INDEX VENV LAB_ARGS NAME UI_FULL CHROMIUM
GIVEN := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(v)))),$(v)))
UNKNOWN := $(firstword $(filter-out $(KNOWN) MAKE% PRUNING_% HF_% OMP_% MKL_% CUDA_%,$(GIVEN)))
ifneq ($(UNKNOWN),)
NEAR := $(shell $(PYTHON) -c 'import difflib, sys; given, *known = sys.argv[1:]; \
  print(*difflib.get_close_matches(given.upper(), known, 1))' '$(UNKNOWN)' $(KNOWN) 2>/dev/null)
$(error the variable $(UNKNOWN) is unknown$(if $(NEAR),: did you mean $(NEAR)?,.) Known are $(KNOWN))
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup constraints assets reproduce tables pages book report drawings accept plan same lab test test-ui recording doctor owner test-colab lint bench test-gpu clean

help: ## show this list
	@echo "make TARGET [PLAN=smoke|laptop|full|beyond|second|original|t4|paper] [ONLY=glob] [STALE=1] [JOBS=n] [SCHEDULER=tcp://host:8786] [FROM=commit] [BENCH=solver] [NAME=github-name] [PYTHON=python3.12] [PIP_ARGS=...] [TORCH_INDEX=...] [LAB_ARGS=--no-browser]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED) ## create .venv and install what is needed

# compiled here, since pip uses one core for it and takes most of a minute longer
$(INSTALLED): pyproject.toml constraints.txt
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Python 3.11 or newer is needed and '$(PYTHON)' is not: give one, as in make setup PYTHON=python3.12" >&2; exit 1; }; \
	  echo "creating $(VENV)"; \
	  $(PYTHON) -m venv --clear $(VENV) || { \
	    echo "could not create $(VENV): install Python's venv module (Debian: python3-venv) and run make again" >&2; exit 1; }; }
	@echo "installing packages into $(VENV); the first time this takes some minutes"
	@$(PY) local_setup.py '$(TORCH_INDEX)' $(PIP_ARGS)
	@$(PY) -m compileall -q -j 0 -x '/(tests|models)/' $(VENV)/lib >/dev/null 2>&1 || true # rarely read, a third of all
	@touch $@

# pins that are there stay: delete a line, or all, to have newer ones. torch is a range, since a GPU or
# a new Python may need another build; with it go the packages of its CUDA builds
constraints: $(INSTALLED) ## resolve constraints.txt for every supported Python again
	@$(PY) -m pip install --quiet $(PIP_ARGS) uv
	@$(VENV)/bin/uv pip compile pyproject.toml --extra dev --extra ui --universal --python-version 3.11 \
	  --no-annotate --no-header --quiet --output-file constraints.txt
	@{ echo "# Written by make constraints, for every Python from 3.11 on: the exact versions that the committed"; \
	  echo "# results came from. torch is a range up to the newest that was tested; the results came from 2.13.0."; \
	  grep -Ev '^(#|torch|triton|nvidia-|cuda-)' constraints.txt; echo "torch>=2.6,<2.16"; } > constraints.new
	@mv constraints.new constraints.txt

# Gemma, which has terms of its own, is fetched for the plan that prunes it only
assets: $(INSTALLED) ## download the embedded model and texts (once; PRUNING_CACHE moves them)
	@$(NO_BARS) $(PY) -m helpers assets
	@$(if $(filter second,$(PLAN)),$(NO_BARS) $(PY) -m helpers assets embedded-gemma)

# a misspelt plan, pattern or run file is refused before anything is fetched
reproduce: $(INSTALLED) ## run a plan, write its tables and figures, compare with the committed results
	@$(RUN) list $(CHOSEN) >/dev/null
	@$(MAKE) --no-print-directory assets
	@$(RUN) reproduce $(CHOSEN) --jobs $(JOBS) $(if $(SCHEDULER),--scheduler '$(SCHEDULER)')

tables: $(INSTALLED) ## write tables and figures again from the records of a plan
	@$(RUN) tables --plan $(PLAN)

# README.md and docs/numbers.md, between their comments
pages: $(INSTALLED) ## write the numbers of README and docs/numbers.md again from the committed records
	@$(PY) -m reproduction.pages

book: $(INSTALLED) ## write results/book/index.html, the project and what was reproduced as a site
	@$(PY) -m book

report: book ## the same as make book

drawings: $(INSTALLED) ## write docs/drawings again from book/drawings.py
	@$(PY) -m book.drawings

# of laptop the notebooks too, with the outputs that they had
accept: $(INSTALLED) ## make the results of a plan here the committed reference (STALE=1: keep older ones too)
	@$(RUN) accept $(CHOSEN) $(if $(filter 1,$(STALE)),--stale)
	@$(if $(filter laptop,$(PLAN)),$(PY) -m book.executed)
	@$(PY) -m reproduction.pages

plan: $(INSTALLED) ## list the runs of a plan: what is done, what is to do
	@$(RUN) list $(CHOSEN)

# records stay of today's code through a rename, a move, or a mended bug that touches no digit of them
same: assets ## prove that today's code computes the same bits as the records' (FROM=commit)
	@$(PY) -m reproduction.proof $(if $(FROM),--from '$(FROM)')

# its root is the project's, so that a link from a notebook to ../results opens; after assets, since
# the first conversion of the model draws bars, which would stay in the outputs of a notebook; book/lab
# keeps JupyterLab from writing into the committed copies with outputs that one looks at
lab: assets ## open JupyterLab on the notebooks
	@JUPYTER_CONFIG_PATH="$(CURDIR)/book/lab:$$JUPYTER_CONFIG_PATH" $(PY) -m jupyter lab --ServerApp.root_dir="$(CURDIR)" \
	  --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB_ARGS)

# two at a time, a file on one side; their kernels compute with one thread each
test: assets ## run the tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# first Colab's own packages, then what it lacks with those held: nothing of Colab's can be replaced
test-colab: ## run tests and the smoke plan with the versions of Google Colab (python3.13, 6 GB)
	@[ -x .venv-colab/bin/python ] || python3.13 -m venv .venv-colab
	@$(COLAB) -m pip install --quiet $(PIP_ARGS) -r tests/colab-constraints.txt
	@$(COLAB) -m pip install --quiet $(PIP_ARGS) -c tests/colab-constraints.txt -e . hypothesis pytest-regressions
	@$(COLAB) -m helpers assets
	@$(COLAB) -m pytest --ignore tests/test_cluster.py --ignore tests/test_book.py
	@PRUNING_RESULTS=results/colab $(COLAB) -m reproduction run --plan smoke

test-gpu: assets ## run the tests of GPUs, on an NVIDIA GPU where there is one, else on a pretended one
	@$(PY) -m pytest tests/gpu

test-ui: assets $(INSTALLED_UI) ## run the notebooks in JupyterLab and a browser (UI_FULL=1: as they are)
	@$(PY) -m pytest tests/ui

recording: assets $(INSTALLED_UI) ## record docs/recording.gif again, an explorer in a browser
	@PYTHONPATH=.:tests/ui $(PY) -m book.recording

$(INSTALLED_UI): $(INSTALLED)
	@$(PY) -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[ui]" || { \
	  echo "pip could not install playwright (its reason is above): check the network, then run make again" >&2; exit 1; }
	@touch $@

# runs before, and without, a set-up: that is when one needs it
doctor: ## look for what is missing or broken, say what to do
	@if $(PY) -c '' 2>/dev/null; then python=$(PY); else python=$(PYTHON); fi; \
	  $$python -m reproduction doctor

# the address of the repository stands in the notebooks' first cells and in links
owner: ## put your GitHub name into the notebooks and pages, for Colab: make owner NAME=...
	@echo '$(OWNER)' | grep -Eqx '[A-Za-z0-9]+(-[A-Za-z0-9]+)*' || { \
	  echo "NAME='$(OWNER)' is no GitHub name: give yours, as in make owner NAME=octocat" >&2; exit 1; }
	@sed -E -i.bak 's#(github(\.com)?|/gh)/[A-Za-z0-9-]+/pruning-reproduction#\1/$(OWNER)/pruning-reproduction#g' $(ADDRESSED)
	@rm -f $(ADDRESSED:=.bak)
	@echo "the notebooks and pages now name github.com/$(OWNER)/pruning-reproduction: commit and push them"

lint: $(INSTALLED) ## check style, syntax and that notebooks are stripped
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .
	@$(PY) -m compileall -q helpers reproduction tests benchmarks examples
	@$(VENV)/bin/lint-imports --no-cache
	@$(PY) -m nbstripout --keep-id --verify notebooks/*.ipynb

# the model is fetched first; BENCH names some, such as BENCH=solver
bench: assets ## measure speed: tables and figures in results/reference/bench
	@$(PY) -m benchmarks $(BENCH)

clean: ## remove the results made here and caches; .venv, downloads and the reference stay
	@rm -rf .pytest_cache .ruff_cache build *.egg-info helpers/__pycache__ reproduction/__pycache__ tests/__pycache__ \
	  tests/ui/__pycache__ benchmarks/__pycache__ book/__pycache__ examples/__pycache__
	@[ ! -d results ] || find results -mindepth 1 -maxdepth 1 ! -name reference \
	  ! -name families.md -exec rm -rf {} +
