# Every target works on a fresh clone: the environment is made when it is missing.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
PHOTO  ?= $(addprefix tests/fixtures/photos/free/,000000000785.jpg 000000000790.jpg)
FIXTURES ?= tests/fixtures/parity
SHARED ?= ../shared
export OMP_NUM_THREADS ?= 1
PY  := .venv/bin/python
HMR := .venv/bin/hmr

.PHONY: setup demo test test-slow parity lint accuracy bench table docs clean

setup: .venv/ready
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q "$(TORCH)"
	$(PY) -m pip install -q -e ".[dev]"
	touch $@

# The main job: photos (two free ones, or PHOTO="mine.jpg ...") and rendered images in, meshes, overlays, GLB and
# report.html out; then a synthetic scene with known truth, scored.
demo: setup
	$(HMR) assets get blazepose
	$(PY) -m stages.synthetic.demo_photos demo/photos $(PHOTO)
	$(HMR) run demo/photos -o demo/photos-out
	$(HMR) synth synth-pc --pictures 12 -o demo/scenes/synth-pc.detections.h5
	$(HMR) run --detections demo/scenes/synth-pc.detections.h5 -o demo/scenes-out
	$(HMR) eval demo/scenes/synth-pc.detections.h5 --meshes demo/scenes-out/people.refined.meshes.h5 -o demo/scenes-out/people.scores.h5
	@echo "look at demo/photos-out/report.html and demo/scenes-out/report.html"

test: lint
	$(PY) -m pytest -n 2

# What `make test` leaves out: 50 kills, long fault lists, minutes of training.
test-slow: setup
	$(PY) -m pytest -m slow

# Every case of the fixtures, full-size networks included: about 12 GiB and some minutes.
parity: setup
	$(PY) -m pytest tests/parity -m "full or not full" --fixtures $(FIXTURES)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

accuracy: setup
	$(PY) -m benchmarks.accuracy --shared $(SHARED)

# Recover, then refine, on every synthetic set: both rows of the table.
table: setup
	$(HMR) eval table -o tables

# The site, in site/: pages, every command's help, the docstrings. A warning is an error.
docs: setup
	$(PY) -m pip install -q -e ".[docs]"
	$(PY) -m sphinx -W --keep-going -q -b html docs site
	@echo "look at site/index.html"

bench: setup
	for each in benchmarks/*.py; do $(PY) -m benchmarks.$$(basename $$each .py) || exit 1; done

clean:
	rm -rf demo tables site docs/generated
