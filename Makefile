# `make lab` opens the workbook, `make test` proves it. Both build what is missing first: a .venv with all that is needed.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
ifeq ($(CONDA_DEFAULT_ENV),data-access-workshop)
# environment.yml's own environment is active: all is there.
PY = python
else
PY = $(VENV)/bin/python
READY = $(VENV)/ready
endif
RUN = $(PY) -m

INSTALL = $(RUN) pip install --quiet --disable-pip-version-check --require-hashes --requirement
LOCK = $(RUN) uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate

# Two processes with servers of their own; nbval compares each cell with what is stored.
PYTEST = $(RUN) pytest tests notebooks -n auto --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout 240 --durations 15

.PHONY: lab test test-long test-browser test-classroom classroom screenshots chromium outputs book slides down clean bench newest lock

lab: $(READY)
	@$(RUN) workshop lab $(ARGS)

test: $(READY)
	@$(RUN) ruff check . && $(RUN) ruff format --check .
	@$(RUN) workshop up
	@$(PYTEST) -m "not alone and not long" $(ARGS)
	@$(RUN) pytest tests -m alone $(ARGS) || test $$? = 5  # 5: ARGS chose none of these

# What takes longer: the lessons whole, with all that stands under "Going further", and servers that are killed and repaired.
test-long: $(READY)
	@$(RUN) workshop up
	@$(PYTEST) -m "long or lesson" $(ARGS)

# A reader's way through the workbook in the system's Chromium; `make screenshots` takes the README's pictures on the way.
test-browser: chromium $(READY) $(VENV)/ready-browser $(VENV)/ready-book
	@CHROMIUM="$(CHROMIUM)" $(RUN) pytest tests/browser --durations 5 $(ARGS)

screenshots: chromium $(READY) $(VENV)/ready-browser
	@CHROMIUM="$(CHROMIUM)" SCREENSHOTS=tests/browser/screenshots $(RUN) pytest tests/browser -k takes_lesson $(ARGS)

# A JupyterHub for a class: `make classroom ARGS="--learners 12"`, `ARGS=--rehearse` the day before, `ARGS=--close` after.
classroom: $(READY) $(VENV)/ready-classroom
	@$(RUN) workshop classroom $(ARGS)

# Learners try to reach one another, on the servers and in Chromium where there is one.
test-classroom: $(READY) $(VENV)/ready-browser $(VENV)/ready-classroom
	@CHROMIUM="$(CHROMIUM)" $(RUN) pytest tests/classroom --durations 5 $(ARGS)

CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
chromium:
	@test -n "$(CHROMIUM)" || { echo "No Chromium: neither chromium, chromium-browser nor google-chrome is on PATH; install one (apt-get install chromium), or set CHROMIUM to its path"; exit 1; }

# Run the notebooks and store what they show: all, or `make outputs NOTEBOOKS=02-connection-pooling.ipynb`.
outputs: $(READY)
	@$(PY) tests/store_outputs.py $(NOTEBOOKS)

# The lessons with their stored outputs as a site to read, offline.
book: $(READY) $(VENV)/ready-book
	@$(RUN) workshop.book

# The core of each lesson as static slides, offline.
slides: $(READY) $(VENV)/ready-book
	@$(RUN) workshop.slides

down: $(READY)
	@$(RUN) workshop down

# The speed of the workbook itself, as ratios within one run; ARGS=--json for all samples.
bench: $(READY)
	@$(PY) tests/benchmark $(ARGS)

# All that was made: environment, servers, data, and the caches of the tools.
clean:
	@# Where the environment is broken, nothing of its own can run; servers that cannot be stopped keep their data.
	@! $(PY) -c 'import workshop.servers.lifecycle' 2>/dev/null || { $(RUN) workshop down && $(PY) -m workshop.state --delete; }
	rm -rf $(VENV) .workshop *.egg-info
	find . -name __pycache__ -o -name .ipynb_checkpoints -o -name .pytest_cache -o -name .ruff_cache | grep -v '^./.git/' | tr '\n' '\0' | xargs -0 rm -rf

# The checkout itself is on the path of the environment, so that notebooks find the helper: nothing is built.
$(VENV)/ready: requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed and none was found on PATH: install one, or run make PYTHON=/path/to/python"; exit 1; }
	@# Debian's python3 comes without venv unless python3-venv is installed; virtualenv does the same without sudo.
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	    || { $(PYTHON) -m pip install --quiet --target $(VENV)/bootstrap virtualenv && PYTHONPATH=$(VENV)/bootstrap $(PYTHON) -m virtualenv --quiet $(VENV); } \
	    || { echo "$(PYTHON) can make no virtual environment: install its venv module (on Debian: apt install python3-venv)"; exit 1; }
	@echo "Installing the workbook and its servers into $(VENV) (once, a minute or two)"
	@$(INSTALL) requirements.lock
	@$(PY) -c 'import sysconfig, pathlib; pathlib.Path(sysconfig.get_path("purelib"), "workshop.pth").write_text("$(CURDIR)\n")'
	@touch $@

$(VENV)/ready-browser $(VENV)/ready-book $(VENV)/ready-classroom: $(VENV)/ready-%: $(READY) requirements-%.lock
	@mkdir -p $(@D)
	@$(INSTALL) requirements-$*.lock
	@touch $@

# The newest versions that pyproject.toml allows, in place of the lock: what the weekly run of CI tries.
newest:
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) pip install --quiet --disable-pip-version-check --editable ".[servers,test,browser,classroom]"
	@touch $(VENV)/ready $(VENV)/ready-browser $(VENV)/ready-classroom

lock: $(READY)
	@$(RUN) pip install --quiet --disable-pip-version-check uv
	@$(LOCK) --extra servers --extra test --output-file requirements.lock
	@for extra in browser book classroom; do \
	    $(LOCK) --extra servers --extra test --extra $$extra --constraint requirements.lock --output-file requirements-$$extra.lock || exit 1; done
