"""Small-data image classification: images in, a classifier and an honest number out.

    config.py       every setting                       runs.py         a run folder on disk
    device.py       cores, memory, GPUs
    disk.py         whole or absent files, room, locks
    system.py       what Windows does in another way
    labels.py       one class an image, or several
    progress.py     what a long step says while it works
    data/           Examples -> uint8 pixels -> datasets -> batches
        sources/    folders and tables -> lists of images with labels
        images/     how a file becomes pixels
        audit/      unreadable images, duplicates, data leakage, shortcuts
    model/          a plain flat keras.Model: RGB 0-255 in, logits out
    evaluate/       Predictions -> metrics, calibration, comparison, plots, report
    doctor.py       whether this machine is ready for a run
    suggest.py      stages from the number of images
    train/          the linear probe, stages of fine-tuning, cached activations
    model_selection/
                    what cross-validation chooses: the network, every `auto`
    distillation.py finished runs as teachers of another
    deploy/         a finished run put to use: test-time augmentation, prediction, explanation; export/, serve/, many/
    experiments/    the runs in a folder side by side: table, page, what can be freed
    diagnose/       checks before a run, baselines, forecast, learning rate range test
    messages.py     what a run says before it trains
    publish.py      what a run reports: scores, figures
    recipe.py       run(config, folder): the whole story
    search/         that story told many times: cross-validation of a recipe, search for a better one

Imports go down only: search -> recipe -> publish -> diagnose -> model_selection, distillation -> train, deploy,
experiments -> data, model, evaluate -> config, runs -> disk, device -> system, progress.
The wings data, model and evaluate do not know each other; tests/test_floors.py holds the house to that.
"""

__version__ = "0.1.0"
