#!/usr/bin/env bash
# The tests with every Python that is here, and with the oldest and the newest dependencies that pyproject.toml allows.
#
#   make test-matrix
#   PYTHONS="python3.12" SETS="oldest" TORCH_INDEX=https://download.pytorch.org/whl/cpu make test-matrix
set -uo pipefail
cd "$(dirname "$0")/.."
folder="${MATRIX_FOLDER:-$(mktemp -d)}"
failed=0

for python in ${PYTHONS:-python3.11 python3.12 python3.13}; do
    if ! command -v "$python" > /dev/null; then
        echo "$python: not here"
        continue
    fi
    for set in ${SETS:-oldest newest}; do
        venv="$folder/$python-$set"
        options=()
        [ "$set" = oldest ] && options=(--constraint constraints-oldest.txt)
        # torch first: whatever else asks for it is then satisfied with this build
        {
            "$python" -m venv "$venv" &&
                "$venv/bin/python" -m pip install --quiet "${options[@]}" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch &&
                "$venv/bin/python" -m pip install --quiet "${options[@]}" --editable ".[dev,plot]" &&
                "$venv/bin/python" -m pip check &&
                "$venv/bin/python" -m pytest -q
        } > "$venv.log" 2>&1 && result=passes || { result="FAILS, see $venv.log"; failed=1; }
        versions=$("$venv/bin/python" -m pip list 2> /dev/null | grep -E "^(torch|numpy|gymnasium|stable_baselines3|mujoco|tensorboard) " | tr -s ' ' | tr '\n' ' ')
        echo "$python, $set: $result ($versions)"
    done
done
exit $failed
