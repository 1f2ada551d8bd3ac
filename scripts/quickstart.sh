#!/usr/bin/env bash
# From an empty machine to images of a digit that was never in the image set:
#     bash scripts/quickstart.sh [unseen digit, default 7]
# Needs python3 >= 3.10 and a package index; no GPU, no data. Two CPU cores: about 3 minutes after installing.
set -euo pipefail
cd "$(dirname "$0")/.."
digit=${1:-7}
if [[ ! $digit =~ ^[0-9]$ ]]; then
    echo "error: '$digit' is not a digit; give one of 0 to 9, as in: bash scripts/quickstart.sh 7" >&2
    exit 2
fi
bash scripts/install.sh
python=.venv/bin/python
classifiers=runs/quickstart_classifiers
run=runs/quickstart_$digit

[ -f datasets/digits/train.h5 ] || $python scripts/prepare_data.py digits
# the probed classifier is robust; the evaluator differs in architecture and seed, and only judges
