"""Settings of the whole test run."""

import os

# Before JAX starts: the tests compile hundreds of small programs and run each of them briefly, so most of their time
# would go into optimising code (the golden tests took half as long again that way). Floating-point rules stay the same.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
