"""Small-data image classification: images in, a classifier and an honest number out.

    config.py       every setting                       runs.py         a run folder on disk
    device.py       cores, memory, GPUs
    disk.py         whole or absent files, room, locks
    data/           files -> Examples -> uint8 pixels -> batches
    model/          a plain flat keras.Model: RGB 0-255 in, logits out
    evaluate/       Predictions -> metrics, calibration, comparison, plots, report
    train/          the probe and what it chooses, stages of fine-tuning, stored activations, checks, baselines
    doctor.py       whether this machine is ready for a run
    suggest.py      stages from the number of images
    deploy/         a finished run put to use, explained, and held against a person
    publish.py      what a run says for itself: scores, figures, report
    recipe.py       run(config, folder): the whole story
    preflight.py    preflight(config, folder): the story before it, of checks and baselines

Imports go down only: preflight -> recipe -> publish -> train, deploy -> data, model, evaluate -> config, runs
-> disk, device.
The wings data, model and evaluate do not know each other; tests/test_floors.py holds the house to that.
"""

__version__ = "0.1.0"
