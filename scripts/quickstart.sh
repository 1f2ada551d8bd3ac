#!/usr/bin/env bash
# From an empty machine to images of a digit that was never in the image set:
#     bash scripts/quickstart.sh [unseen digit, default 7]
# Needs python3 >= 3.10 and a package index; no GPU, no data. Stopped at any point, it goes on when run again.
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
[ -f $classifiers/probed.pt ] ||
    $python -m classifiers.train --dataset digits --arch smallcnn --robust l2 --eps 1.25 --steps 3 --epochs 20 \
        --out $classifiers/probed.pt
# the judge: another architecture, another seed, never used in training the GAN
[ -f $classifiers/evaluator.pt ] ||
    $python -m classifiers.train --dataset digits --arch resnet8 --role evaluator --epochs 12 --seed 1 \
        --out $classifiers/evaluator.pt

if compgen -G "$run/checkpoints/step_*.pt" > /dev/null; then
    $python train.py --resume "$run"
else
    $python train.py --dataset digits --new_class "$digit" --C_path $classifiers/probed.pt \
        --evaluator $classifiers/evaluator.pt --run "$run"
fi
$python evaluate.py --run "$run" --num 1000 --report \
    --metrics recognition activation adversarial_gap intra_fd precision_recall_density_coverage vendi nearest_seen
echo "look at $run/samples.png: a row a class, the unseen one framed in red; and open $run/report.html"
