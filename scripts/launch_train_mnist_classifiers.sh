#!/usr/bin/env bash
# MNIST classifiers to probe, regular and robust, and two judges: ./scripts/launch_train_mnist_classifiers.sh [flags]
# OUT names another folder. One that is there is kept, one that was stopped goes on; flags go to every training.
# Needs: python scripts/prepare_data.py mnist. Hardware and minutes: pretrained/README.md.
# Expected: the accuracies in the model cards, pretrained/*.json.
source "$(dirname "$0")/classifiers.sh"
common=(--dataset MNIST --batch_size 128)
make mnist_regular "${common[@]}" --arch smallcnn --epochs 4 "$@"
make mnist_robust "${common[@]}" --arch smallcnn --epochs 6 --robust l2 --eps 1.5 --steps 3 --ema_decay 0.998 "$@"
make mnist_evaluator "${common[@]}" --arch resnet8 --role evaluator --epochs 4 --seed 1 "$@"
# of another kind: robust, and trained on images that no other saw
make mnist_robust_evaluator "${common[@]}" --arch resnet8 --role evaluator --split test --test train --robust l2 --eps 1.5 --steps 3 --epochs 16 --ema_decay 0.99 --seed 2 "$@"
