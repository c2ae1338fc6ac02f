"""BERT-mini inference, 1 x 128 words."""

from benchmarks import inference, models
from benchmarks.workloads import Workload

WORKLOAD = Workload(
    title="BERT-mini inference, 1 x 128 words",
    peers=inference.peers(models.bert_mini, lambda: inference.words(1, 128, 30522)),
    check_steps=4,
)
