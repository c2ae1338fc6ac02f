"""GPT-2 small prefill of 128 words, all logits."""

from benchmarks import inference, models
from benchmarks.workloads import Workload

WORKLOAD = Workload(
    title="GPT-2 small prefill of 128 words, all logits",
    peers=inference.peers(models.gpt2_small, lambda: inference.words(1, 128, 50257)),
    check_steps=4,
)
