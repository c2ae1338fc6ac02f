"""ResNet-50 224x224 inference, batch 16."""

from benchmarks import inference, models
from benchmarks.workloads import Workload

WORKLOAD = Workload(
    title="ResNet-50 224x224 inference, batch 16",
    peers=inference.peers(models.resnet50, lambda: inference.images(16, 224), images=True),
    check_steps=4,
)
