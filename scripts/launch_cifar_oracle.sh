#!/usr/bin/env bash
# The oracle on CIFAR-10, its class present: ./scripts/launch_cifar_oracle.sh <class> <batch size> [flags]
# One GPU. Expected, from the paper: intra-FID 13.7 for horse and 14.0 for truck.
source "$(dirname "$0")/cifar.sh"
launch oracle --oracle "$@"
