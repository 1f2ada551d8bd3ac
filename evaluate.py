#!/usr/bin/env python3
"""Measure a run: how often a judge recognises its classes, beside what the probed classifier accepts.

    python evaluate.py --run RUN --evaluator evaluator.pt

Writes RUN/result.json. The evaluator must be independent of the probed classifier: another seed and
another architecture, and never used in training the GAN.
"""

from pathlib import Path

from classifiers import load_classifier
from config import Parser
from metrics.recognition import recognition
from sample import Sampler
from utils import UserError, choose_device, load_checkpoint, run_main, write_json


def percent(share):
    """'97.0 % (95.9 to 97.8)' for a rate of metrics.recognition."""
    return f"{share['rate']:6.1%} ({share['low']:.1%} to {share['high']:.1%})"


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder; its newest checkpoint is measured")
    parser.add_argument("--evaluator", type=Path, required=True, help="checkpoint of the classifier that judges")
    parser.add_argument("--num", type=int, default=1000, help="images a class (default: 1000)")
    parser.add_argument("--seed", type=int, default=10_000, help="seed of the first image (default: 10000)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    flags = parser.parse_args()
    if flags.num < 1:
        raise UserError(f"--num is {flags.num}; it must be at least 1.")
    state = load_checkpoint(flags.run)
    probed_path = state["config"]["C_path"]
    if Path(probed_path).resolve() == flags.evaluator.resolve():
        raise UserError(f"{flags.evaluator} is the classifier that this run probed; it cannot judge its own images. "
                        "Give an independent one.")
    device = choose_device(flags.device)
    sampler = Sampler(state, device)
    n_classes = len(sampler.classes)
    result = {"step": sampler.step, "unseen_classes": [sampler.classes[y] for y in sampler.config.new_class],
              "oracle": sampler.config.oracle, "naive": sampler.config.naive, "images_per_class": flags.num,
              "first_seed": flags.seed}
    for name, path in (("evaluator", flags.evaluator), ("probed", probed_path)):
        classifier = load_classifier(path, num_classes=n_classes, device=device)
        result[name] = {"path": str(path), "arch": classifier.arch,
                        **recognition(sampler, classifier, flags.num, flags.seed)}
    write_json(flags.run / "result.json", result)

    print(f"{flags.run}, step {sampler.step}, {flags.num} images a class, recognised as the class drawn "
          "(95 % interval):")
    for group in ("unseen", "seen"):
        if group in result["evaluator"]:
            names = f" ({', '.join(result['unseen_classes'])})" if group == "unseen" else ""
            print(f"  {group + names:16} evaluator {percent(result['evaluator'][group])}   "
                  f"probed classifier {percent(result['probed'][group])}")
    print(f"  written to {flags.run / 'result.json'}")


if __name__ == "__main__":
    run_main(main)
