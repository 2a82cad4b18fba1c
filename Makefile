SHELL := bash
PYTHON ?= python3
# A folder or a hub name of a LLaVA checkpoint; empty serves the bundled demo.
MODEL ?=
# First tests that wait for a real engine or for nothing, the longest first, then those that look at the clock. One more
# than there are cores at once, as each waits now and then, but no more than three with engines, of one thread each. A test
# that failed in this crowd has a second chance by itself, and fails the run if it fails again. The soak is last and by itself.
AT_LEISURE := tests/faults/test_engine_faults.py tests/clients tests/browser tests/engine tests/chart tests/finetune tests/unit
BY_THE_CLOCK := tests/api
ONE_THREAD := OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind

.DEFAULT_GOAL := help
.PHONY: help setup setup-test setup-ui serve demo test tests test-clients test-browser lint soak bench image-test demo-checkpoints clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

# Returns at once where nothing changed since the last time.
setup:
	@$(PYTHON) tools/setup_venv.py

setup-test:
	@$(PYTHON) tools/setup_venv.py --test

setup-ui:
	@$(PYTHON) tools/setup_venv.py --ui

serve: setup ## Install what is missing, then serve MODEL (default: the bundled demo)
	.venv/bin/llava-api serve $(MODEL)

demo: setup setup-ui ## Serve MODEL with a chat page in the browser beside it; prints the link
	@$(PYTHON) tools/demo.py $(MODEL)

lint: setup-test ## Style, types and the rules on who imports whom
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/hadolint Dockerfile
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec compose.yaml compose.gpu.yaml
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yaml
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.renovate .github/renovate.json

# The two environments at the same time, then style and types beside the first tests.
test: ## Everything continuous integration runs
	@$(MAKE) --no-print-directory -j 2 setup-test setup-ui
	@$(MAKE) --no-print-directory -j 2 -k lint tests

tests: setup-test setup-ui
	@failed=0; \
	again() { [ $$? = 1 ] && echo "once more, by themselves, what failed:" && \
		$(ONE_THREAD) .venv/bin/python -m pytest -q --last-failed --last-failed-no-failures none $$@ || failed=1; }; \
	$(ONE_THREAD) .venv/bin/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder $(AT_LEISURE) || again $(AT_LEISURE); \
	.venv/bin/python -m pytest -q -n $$(($$(nproc) + 1)) --dist worksteal $(BY_THE_CLOCK) || again $(BY_THE_CLOCK); \
	$(ONE_THREAD) .venv/bin/python -m pytest -q tests/faults/test_soak.py || failed=1; \
	exit $$failed

test-clients: setup-test ## Try other people's clients, Python and Node, against a running server
	.venv/bin/python -m tools.client_tests $(FLAGS)

test-browser: setup-test setup-ui ## Try the chat page in Chromium; SCREENSHOTS=1 renews the images in docs/
	LLAVA_TEST_BROWSER=required .venv/bin/python -m pytest tests/browser $(FLAGS)

vllm-versions: setup-test ## Try every supported version of vLLM in an environment of its own; FLAGS=0.31.0 for one
	.venv/bin/python -m tools.vllm_versions $(FLAGS)

soak: setup-test ## Twice the load that the server can take, mixed with bad and cut-off requests; FLAGS='--minutes 20'
	.venv/bin/python -m benchmarks.soak $(FLAGS)

bench: setup-test ## Measure this server beside vLLM's own; FLAGS=--quick for one short round
	.venv/bin/python -m benchmarks.bench $(FLAGS)

image-test: ## Build the CPU image with buildah and try it (as root; 15 GB of disk; not part of test); FLAGS='--base IMAGE'
	@$(PYTHON) -m tools.image_test $(FLAGS)

demo-checkpoints: setup ## Train the bundled demo checkpoints again (hours on a CPU)
	.venv/bin/python -m training.train llava-tiny-1.5 --folder runs/llava-tiny-1.5
	.venv/bin/python -m training.train llava-tiny-1.6 --folder runs/llava-tiny-1.6 --start-from runs/llava-tiny-1.5/state.pt
	for name in llava-tiny-1.5 llava-tiny-1.6; do \
		.venv/bin/python -m training.train $$name --stage forms --folder runs/$$name-json --start-from runs/$$name/state.pt \
			&& .venv/bin/python -m training.export $$name --folder runs/$$name-json || exit 1; \
	done

# Not runs/: it holds hours of training.
clean: ## Remove the environment and the caches
	rm -rf .venv .venv-ui .venv-clients tests/clients/*/node_modules build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find src tests tools training -name __pycache__ -type d -prune -exec rm -rf {} +
