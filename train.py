"""Train a model on a sequence of tasks: ``python train.py adapter=curlora rank=16``; see ``python train.py --help``."""

from curlora_lab.cli import main

if __name__ == "__main__":
    main()
