#!/bin/sh
# Takes the trained sample to 8 bits, and a twin of it whose channels range widely; compares
# accuracies on the test images. Usage: demo_int8.sh BIN, the folder of the acfuse and python to use.
set -eu
bin=$1
here=$(cd "$(dirname "$0")" && pwd)
demo=$(dirname "$here")/.demo-int8
rm -rf "$demo"
mkdir "$demo"
cp "$here"/*.py "$here"/*.toml "$here"/model.pth "$demo"
cd "$demo"
run() {
    printf '\n$ %s\n' "$*"
    "$bin"/"$@"
}
run python calibration.py images.npz
run acfuse convert model.pth --quiet
run acfuse equalize model.fused.onnx --data images.npz
run acfuse quantize model.fused.onnx --data images.npz --per-tensor

printf '\nThe same network with channels of uneven range: in float, nobody sees it.\n'
run python uneven.py model.pth uneven.pth
run acfuse convert uneven.pth --quiet
run acfuse quantize uneven.fused.onnx --data images.npz --per-tensor
run acfuse equalize uneven.fused.onnx --data images.npz
run acfuse quantize uneven.fused.equalized.onnx --data images.npz --per-tensor

printf '\nOn the 360 images that training never saw:\n'
run python accuracy.py uneven.pth model.fused.onnx model.fused.int8.onnx uneven.fused.onnx \
    uneven.fused.int8.onnx uneven.fused.equalized.onnx uneven.fused.equalized.int8.onnx --points 100
run python accuracy.py model.pth uneven.fused.equalized.int8.onnx --points 1
