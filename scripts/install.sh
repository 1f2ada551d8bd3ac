#!/usr/bin/env bash
# Make .venv with the packages of requirements.txt, and of any other file given; returns at once when done before.
# What a file named *no_deps.txt lists is installed without its dependencies.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for file in requirements.txt "$@"; do
    stamp=.venv/installed_${file//\//_}
    if ! cmp -s "$file" "$stamp"; then
        [ -x .venv/bin/python ] || python3 -m venv .venv || {
            echo "error: python3 -m venv failed; install python3 (3.10 or newer) with its venv module." >&2
            exit 2
        }
        echo "installing $file into .venv (once)"
        alone=""
        [[ $file == *no_deps.txt ]] && alone=--no-deps
        .venv/bin/python -m pip install --quiet --disable-pip-version-check $alone -r "$file"
        cp "$file" "$stamp"
    fi
done
