#!/usr/bin/env bash
# Measure on a GPU, in about ten minutes on a large one; gpu.py writes its table to docs/benchmarks.md.
#
#   benchmarks/gpu.sh                 full-size SDXL and SD1.5 with random weights, without a download
#   benchmarks/gpu.sh --small         the same at small size, on any machine, only printed
#
# RETIPAIR_PYTHON names the Python that has retipair; default: the one of .venv, else python.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${RETIPAIR_PYTHON:-$(test -x .venv/bin/python && echo .venv/bin/python || echo python)}
case " $* " in
*" --small "*) small=--small base=random:tiny-sd15 repeats=1 ;;
*) small='' base=random:sdxl repeats=5 ;;
esac
"$PYTHON" benchmarks/gpu.py "$@"
"$PYTHON" benchmarks/memory.py $small # each memory strategy and its estimate; only printed
exec "$PYTHON" benchmarks/tricks.py --base $base --repeats $repeats # only printed
