"""A small run to plan, as tests of `flanx.plan` share it."""

from flanx import optim
from flanx.models import t5
from flanx.plan import planned_run
from flanx.train_step import Trainer

SMALL = t5.T5(
    vocab_size=512, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=512, num_encoder_layers=2, num_decoder_layers=2
)
TRAINER = Trainer(SMALL, optim.adafactor(1e-3), dropout=False)
RUN = planned_run.PlannedRun(TRAINER, 32, {"inputs": 128, "targets": 64}, 100)
