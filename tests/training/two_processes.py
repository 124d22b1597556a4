"""Started by torchrun in test_loop: train the digits and write what this process ends with."""

import sys
from pathlib import Path

import torch

from training.collect import accuracy_by_class
from training.config import config_for
from training.data import load
from training.feed import MemoryFeed
from training.loop import new_accelerator, new_classifier, train
from training.runs import train_run

out = Path(sys.argv[1])
data, config = load("digits"), config_for(8, 8, epochs=20)
classifier = new_classifier(config, data)
rank = new_accelerator().process_index
assert new_accelerator().num_processes == 2
curves = train(config, data, MemoryFeed(data.train, config.augmentation, torch.device("cpu")), classifier)
torch.save(
    {
        "parameters": dict(classifier.named_parameters()),
        "loss": curves[-1]["loss"],
        "accuracy": float(accuracy_by_class(classifier, data.test).mean()),
    },
    out / f"rank{rank}.pt",
)
train_run("digits", out=out / "run", epochs=2)
