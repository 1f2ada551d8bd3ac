#!/usr/bin/env bash
# Run the linter and all tests: bash scripts/test.sh [quick] [pytest arguments]. Installs what is missing.
# quick: without the tests that take seconds or a browser (tests/slow.txt); an answer within 90 seconds on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh tests/requirements.txt tests/requirements_no_deps.txt
.venv/bin/ruff check .
if [ "${1:-}" = quick ]; then
    set -- -m "not slow and not browser" "${@:2}"
fi
# one thread a worker: small convolutions gain more from two tests at a time
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10 "$@"
