#!/bin/sh
# Let MediaPipe's face mesh judge films; see mediapipe_judge.py. Makes its environment once.
set -eu
cd "$(dirname "$0")/.."
environment=build/mediapipe
if ! test -x "$environment/bin/python"; then
    ${PYTHON:-python3} -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' || {
        echo "MediaPipe 0.10.14 needs Python 3.9 to 3.12; say PYTHON=python3.11" >&2
        exit 1
    }
    ${PYTHON:-python3} -m venv "$environment"
    "$environment/bin/pip" install --quiet 'mediapipe==0.10.14' 'numpy<2' || {
        rm -rf "$environment"
        echo "MediaPipe 0.10.14 cannot be installed here: no second judge" >&2
        exit 1
    }
fi
exec "$environment/bin/python" training/mediapipe_judge.py "$@"
