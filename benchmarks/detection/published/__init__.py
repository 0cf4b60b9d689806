"""Rule sets of others, rebuilt from what their papers and pages say, and shown the same runs."""

from . import autotrainer, deepdiagnosis, sagemaker, umlaut
from .watch import PublishedRule

RULE_SETS: dict[str, list[PublishedRule]] = {
    "SageMaker Debugger, tensor rules": sagemaker.TENSOR_RULES,
    "SageMaker Debugger, all": sagemaker.ALL_RULES,
    "AutoTrainer": autotrainer.RULES,
    "DeepDiagnosis": deepdiagnosis.RULES,
    "UMLAUT": umlaut.RULES,
}
