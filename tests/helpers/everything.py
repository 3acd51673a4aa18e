"""What trainings need, imported once by the server of tests/helpers/processes.py."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed.fsdp
import torch.distributed.tensor
from torch.utils.tensorboard import SummaryWriter  # noqa: F401

import twosides.training.run
import twosides.training.sharding
import twosides.training.validation  # noqa: F401

torch.set_num_threads(1)
