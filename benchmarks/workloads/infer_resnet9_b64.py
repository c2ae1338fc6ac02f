"""ResNet-9 32x32 inference, batch 64."""

from benchmarks import inference, models
from benchmarks.workloads import Workload

WORKLOAD = Workload(
    title="ResNet-9 32x32 inference, batch 64",
    peers=inference.peers(models.resnet9, lambda: inference.images(64, 32), images=True),
    check_steps=4,
)
