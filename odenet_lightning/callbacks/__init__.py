"""Callbacks: what is counted, printed, drawn and restored around training. The drawing itself is in figures.py."""

from odenet_lightning.callbacks.classifier import classifier
from odenet_lightning.callbacks.coarse_start import CoarseStart
from odenet_lightning.callbacks.epoch_lines import EpochLines
from odenet_lightning.callbacks.evaluation import Evaluation
from odenet_lightning.callbacks.event_file import EventFile, flatten
from odenet_lightning.callbacks.is_ode import IsODE
from odenet_lightning.callbacks.nfe import EvaluationCounts
from odenet_lightning.callbacks.pictures import Pictures
from odenet_lightning.callbacks.prediction_writer import PredictionWriter
from odenet_lightning.callbacks.progress_bar import ProgressBar
from odenet_lightning.callbacks.resume import Resume
from odenet_lightning.callbacks.test_report import TestReport
from odenet_lightning.callbacks.throughput import Throughput
from odenet_lightning.trainer import datamodule

__all__ = [
    "CoarseStart",
    "EpochLines",
    "Evaluation",
    "EvaluationCounts",
    "EventFile",
    "IsODE",
    "Pictures",
    "PredictionWriter",
    "ProgressBar",
    "Resume",
    "TestReport",
    "Throughput",
    "classifier",
    "datamodule",
    "flatten",
]
