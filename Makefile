# Two commands to know: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-newest test-oldest test-doors test-clocks sync bench fuzz schemas clean

demo: .venv/ready
	$(BIN)/python -m demo

test: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 4 --dist loadgroup  # most tests wait for processes and back-off

# The newest and the oldest releases that pyproject.toml allows, whatever poetry.lock has.
test-newest: RESOLUTION := highest
test-oldest: RESOLUTION := lowest-direct
test-newest test-oldest:
	$(PYTHON) -m venv --clear .venv-$@
	.venv-$@/bin/pip install -qq uv
	.venv-$@/bin/uv pip install -q --python .venv-$@ --resolution $(RESOLUTION) \
	  --group dev --group demo --editable .
	.venv-$@/bin/pytest -n 4 --dist loadgroup

# Every way of running the connector that takes longer: wheels, PyAirbyte, Airbyte's tools, image.
test-doors: .venv/ready
	$(BIN)/pytest -n 2 --dist loadfile door_tests

# The tests at the ends of hours, days, months and years, by a moved clock: about an hour.
# make test-clocks CLOCKS='--days 21 unit_tests/test_doors.py' for three weeks, and for some tests
test-clocks: .venv/ready
	$(BIN)/python scripts/clocks.py $(CLOCKS)

# The same program as the demo's, with a real project: make sync CONFIG=secrets/config.json
sync: .venv/ready
	$(BIN)/python -m demo --config $(CONFIG)

# Half an hour on two cores that do nothing else; writes benchmarks/report/.
bench: .venv/ready
	$(BIN)/python -m benchmarks

# Property-based tests of the export and of odd answers, for hours instead of seconds.
fuzz: .venv/ready
	HYPOTHESIS_PROFILE=fuzz $(BIN)/pytest unit_tests/test_properties.py unit_tests/test_odd_answers.py

schemas: .venv/ready
	$(BIN)/python -m scripts.inline_schemas
	$(BIN)/python -m scripts.lake_schemas
	$(BIN)/python -m scripts.docs_tables

# The versions of poetry.lock, whatever has been released since.
.venv/ready: pyproject.toml poetry.lock scripts/locked.py
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
	  || { echo "Python 3.10 to 3.13 is needed: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up .venv: this takes a minute or two, once."
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install -qq --upgrade 'pip>=25.1'
	$(BIN)/python scripts/locked.py main dev demo > .venv/locked.txt
	$(BIN)/pip install -qq --no-deps --require-hashes --requirement .venv/locked.txt
	$(BIN)/pip install -qq --no-deps --editable .
	touch $@

clean:
	rm -rf .venv* dist .mypy_cache .pytest_cache .ruff_cache
