#!/usr/bin/env bash
# The FER2013 classifiers of pretrained/, as they were made: ./scripts/launch_train_fer2013_classifiers.sh [flags]
# OUT names another folder. One that is there is kept, one that was stopped goes on; flags go to every training.
# Needs: python scripts/prepare_data.py fer2013 --source ZIP. Hardware and hours: pretrained/README.md.
# Expected: the accuracies in the model cards, pretrained/*.json.
source "$(dirname "$0")/classifiers.sh"
common=(--dataset fer2013 --batch_size 128 --lr 0.1 --ema_decay 0.998 --precision bf16)
make fer2013_regular "${common[@]}" --arch narrow_resnet --epochs 12 --label_smoothing 0.1 "$@"
make fer2013_robust "${common[@]}" --arch narrow_resnet --epochs 10 --robust l2 --eps 0.25 --steps 1 "$@"
make fer2013_evaluator "${common[@]}" --arch narrow_vgg --role evaluator --epochs 16 --label_smoothing 0.1 --seed 1 "$@"
