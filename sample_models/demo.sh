#!/bin/sh
# Converts the trained sample in a copy of this folder, and compares accuracies on the test images.
# Usage: demo.sh BIN, the folder of the acfuse and python to use.
set -eu
bin=$1
here=$(cd "$(dirname "$0")" && pwd)
demo=$(dirname "$here")/.demo
rm -rf "$demo"
mkdir "$demo"
cp "$here"/*.py "$here"/*.toml "$here"/model.pth "$demo"
cd "$demo"
for line in "acfuse convert model.pth" "acfuse verify --atol 1e-4 --quiet" "acfuse export-onnx"; do
    printf '\n$ %s\n' "$line"
    "$bin"/$line
done
printf '\n$ python accuracy.py model.pth model.fused.onnx\n'
"$bin"/python accuracy.py model.pth model.fused.onnx
