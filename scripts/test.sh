#!/usr/bin/env bash
# Run the linter and all tests: bash scripts/test.sh [pytest arguments]. Installs what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh tests/requirements.txt tests/requirements_no_deps.txt
.venv/bin/ruff check .
# one thread a worker: small convolutions gain more from two tests at a time
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile --durations 10 "$@"
