"""The engines by the names that command lines give them."""

from collections.abc import Callable

from cupre_d2.experiments.local_engine import LocalEngine
from cupre_d2.experiments.ray_engine import RayEngine
from cupre_d2.experiments.runner import Engine

# Each from the number of processes side by side on a machine.
ENGINES: dict[str, Callable[[int], Engine]] = {"local": LocalEngine, "ray": RayEngine}
