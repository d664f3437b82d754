#!/usr/bin/env bash
# From a folder of images to a paper: runs, the best model, ONNX, predictions, scores, a PDF figure, a LaTeX table.
# examples/whole_way.sh OUT [IMAGES]: OUT is a new folder; IMAGES has a folder for each class. At most 3 minutes on two
# cores with the images that it makes without IMAGES: 1797 digits of scikit-learn.
set -euo pipefail
out=${1:?name a new folder for the results}
images=${2:-$out/images}
mkdir -p "$out"

if [[ $# -lt 2 ]]; then
    python - "$images" <<'PYTHON'
import sys
from pathlib import Path
from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
for number, (pixels, label) in enumerate(zip(digits.images, digits.target)):
    home = Path(sys.argv[1]) / f"digit-{label}"
    home.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 15.9).astype("uint8")).save(home / f"{number:04}.png")
PYTHON
fi

cat > "$out/study.toml" <<TOML
seed = 0
rounds = 8

[data]
name = "images:$(realpath "$images")"
size = 16
channels = 1
partition = { scheme = "dirichlet", clients = 6, alpha = 0.3, minimum = 20 }
public = { size = 200 }
node_validation = 0.2

[model]
name = "cnn"

[train]
epochs = 1
batch_size = 32
optimizer = { name = "adam", lr = 0.001 }

[strategy]
name = "knfu"

[evaluate]
every = 2

[checkpoint]
best = "personal_validation/accuracy"
TOML

fedkd sweep "$out/study.toml" --vary strategy=local,fedavg,knfu --seeds 0..2 --out "$out/runs"
fedkd compare "$out/runs" --baseline local --out "$out/tables"      # compare.tex, compare.md, compare.csv
best="$out/runs/strategy=fedavg,seed=0"
fedkd figures "$best" --out "$out/figures" --style paper            # curves.pdf, .svg, .png, .csv, ...
fedkd export "$best" --which best --out "$out/model.onnx" --licence CC-BY-4.0
fedkd predict "$out/model.onnx" "$images" --out "$out/predictions.csv"
fedkd evaluate "$out/model.onnx" "$best" --out "$out/scores.json"
echo "table: $out/tables/compare.tex"
echo "figure: $out/figures/curves.pdf"
echo "model: $out/model.onnx, its card: $out/model.onnx.md"
echo "predictions: $out/predictions.csv, scores: $out/scores.json"
