# What the launchers of pretrained classifiers share; sourced by them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python
[ -x .venv/bin/python ] && python=.venv/bin/python

# make NAME FLAGS: train OUT/NAME.safetensors, or go on with it; one that is there is kept
make() {
    local file=${OUT:-pretrained}/$1.safetensors
    shift
    if [ -f "$file" ]; then
        echo "$file is there"
    else
        $python -m classifiers.train --out "$file" "$@"
    fi
}
