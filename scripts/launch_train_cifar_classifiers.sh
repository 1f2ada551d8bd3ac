#!/usr/bin/env bash
# The CIFAR-10 classifiers of pretrained/, as they were made: ./scripts/launch_train_cifar_classifiers.sh [flags]
# OUT names another folder. One that is there is kept, one that was stopped goes on; flags go to every training.
# Needs: python scripts/prepare_data.py cifar10. Hardware and hours: pretrained/README.md.
# Expected: the accuracies in the model cards, pretrained/*.json.
source "$(dirname "$0")/classifiers.sh"
common=(--dataset C10 --batch_size 128 --lr 0.15 --ema_decay 0.998)
make cifar10_regular "${common[@]}" --arch resnet9 --epochs 16 --label_smoothing 0.1 "$@"
make cifar10_robust "${common[@]}" --arch resnet9 --epochs 12 --robust l2 --eps 0.5 --steps 1 "$@"
make cifar10_evaluator "${common[@]}" --arch vgg7 --role evaluator --epochs 24 --label_smoothing 0.1 --seed 1 "$@"
# of another kind: robust; against one step it learnt the adversary and not the images (31 % clean)
make cifar10_robust_evaluator "${common[@]}" --arch vgg7 --role evaluator --epochs 6 --robust l2 --eps 0.5 --steps 2 --seed 2 "$@"
# trained on images that no other saw
make cifar10_test_evaluator "${common[@]}" --arch vgg7 --role evaluator --split test --test train --epochs 30 --label_smoothing 0.1 --seed 3 "$@"
