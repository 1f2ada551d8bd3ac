#!/usr/bin/env bash
# A classifier of voices to probe, regular and robust, and an evaluator: ./scripts/launch_train_voices_classifiers.sh [flags]
# OUT names another folder. One that is there is kept, one that was stopped goes on; flags go to every training.
# Needs: python scripts/prepare_data.py voices --source ZIP_OR_DIR. Hardware and minutes: pretrained/README.md.
# Expected: the accuracies in the model cards, pretrained/*.json. The evaluator learns from speakers of its own.
source "$(dirname "$0")/classifiers.sh"
common=(--dataset voices --precision bf16)
make voices_evaluator "${common[@]}" --split evaluator --arch narrow_vgg --role evaluator --epochs 24 --ema_decay 0.98 \
    --label_smoothing 0.1 --weight_decay 0.002 --seed 1 "$@"
make voices_robust "${common[@]}" --arch smallcnn --epochs 8 --robust l2 --eps 1.5 --steps 2 "$@"
make voices_regular "${common[@]}" --arch smallcnn --epochs 6 "$@"
