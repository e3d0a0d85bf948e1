# make demo, make test: on a machine with Python 3.10-3.12 and pip. VENV= uses the active environment.
VENV ?= .venv
PY := $(if $(VENV),$(VENV)/bin/python,python3)
# The real data beside a checkout of the team, for the tests marked real_data.
ifneq ($(wildcard ../shared/datasets),)
export DETECTRON2_DATASETS ?= $(abspath ../shared/datasets)
endif

.PHONY: setup demo test lint

setup:
	@python3 tools/setup_env.py $(VENV)

demo: setup
	$(PY) -W ignore tools/train_net.py --config-file configs/quickstart.yaml $(ARGS)
	$(PY) -W ignore tools/predict.py output/quickstart synthetic_cells_val --output output/quickstart_cells --format overlays,labels,measurements,counts,report
	@echo "Look at output/quickstart_cells/report.html, and at output/quickstart/report.html of the training."

test: setup lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadscope $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
