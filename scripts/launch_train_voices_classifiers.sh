#!/usr/bin/env bash
# A classifier of voices to probe, regular and robust, and an evaluator: ./scripts/launch_train_voices_classifiers.sh [flags]
# OUT names another folder. One that is there is kept, one that was stopped goes on; flags go to every training.
# Needs: python scripts/prepare_data.py voices --source ZIP_OR_DIR. Hardware and minutes: pretrained/README.md.
# Expected: the accuracies in the model cards, pretrained/*.json.
source "$(dirname "$0")/classifiers.sh"
common=(--dataset voices --batch_size 64 --precision bf16)
