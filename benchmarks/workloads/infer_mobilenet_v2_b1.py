"""MobileNetV2 224x224 inference, batch 1."""

from benchmarks import inference, models
from benchmarks.workloads import Workload

WORKLOAD = Workload(
    title="MobileNetV2 224x224 inference, batch 1",
    peers=inference.peers(models.mobilenet_v2, lambda: inference.images(1, 224), images=True),
    check_steps=4,
)
