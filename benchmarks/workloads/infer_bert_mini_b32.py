"""BERT-mini inference, 32 x 128 words."""

from benchmarks import inference, models
from benchmarks.workloads import Workload

WORKLOAD = Workload(
    title="BERT-mini inference, 32 x 128 words",
    peers=inference.peers(models.bert_mini, lambda: inference.words(32, 128, 30522)),
    check_steps=4,
)
