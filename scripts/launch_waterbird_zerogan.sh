#!/usr/bin/env bash
# ProbeGAN on Waterbirds with the release's settings (utils.DATASETS has them): what does a classifier see in a bird?
#   ./scripts/launch_waterbird_zerogan.sh <unseen class> <resolution> <model> [flags]
# The unseen class is waterbird, drawn from landbirds on land, or landbird, drawn from waterbirds on water. Resolution:
# 64 or 32 (waterbirds32, small networks for a CPU). Model: erm, dro or another name; C_PATH names its file.
# Needs: python scripts/prepare_data.py waterbirds --source PUBLISHED_FOLDER_OR_ZIP, and a classifier, as by
#   python -m classifiers.train --dataset waterbirds --objective dro --groups place --out runs/waterbirds/dro.safetensors
# Hardware: one GPU for 64 pixels. Hours: not measured yet.
# Expected, from the paper: of an ERM classifier the unseen waterbird stands in water, of a DRO classifier on land.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -lt 3 ]; then
    echo "error: give the unseen class, the resolution and the model, as in: $0 waterbird 64 dro" >&2
    exit 2
fi
class=$1 resolution=$2 model=$3
shift 3
case $class in
    waterbird | 1) place=land ;;
    landbird | 0) place=water ;;
    *) echo "error: the unseen class '$class' is neither waterbird nor landbird" >&2; exit 2 ;;
esac
case $resolution in
    64) dataset=waterbirds ;;
    32) dataset=waterbirds32 ;;
    *) echo "error: resolution '$resolution' is not prepared; give 64 or 32" >&2; exit 2 ;;
esac
python=python
[ -x .venv/bin/python ] && python=.venv/bin/python
run=runs/${dataset}_${model}_$class
if compgen -G "$run/checkpoints/step_*.pt" > /dev/null; then
    echo "going on with $run, under the settings that it was started with"
    exec $python train.py --resume "$run" "$@"
fi
exec $python train.py --dataset $dataset --new_class "$class" --only place=$place --run "$run" \
    --C_path "${C_PATH:-runs/waterbirds/$model.safetensors}" "$@"
