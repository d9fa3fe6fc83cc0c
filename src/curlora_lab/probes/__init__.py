"""What is measured on the untouched language model: perplexity, output shift and weight shift."""

from curlora_lab.probes.output import OutputShift
from curlora_lab.probes.perplexity import PerplexityProbe, ProbeResult
from curlora_lab.probes.shift import WeightReference, WeightShift, adapted_modules
from curlora_lab.probes.weights import WeightError, base_weight, effective_weight, weight_update

__all__ = [
    "OutputShift",
    "PerplexityProbe",
    "ProbeResult",
    "WeightError",
    "WeightReference",
    "WeightShift",
    "adapted_modules",
    "base_weight",
    "effective_weight",
    "weight_update",
]
