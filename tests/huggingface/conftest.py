"""These tests have an environment of their own (``make huggingface``).

Where transformers is installed torchmetrics imports it, which would make each process of the other tests start seconds
later.
"""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("transformers") and find_spec("accelerate") else ["test_*.py"]
