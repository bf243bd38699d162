"""How is a whole data set explained? In one call or one command, on many processes, and again after an interruption."""

from captum_boundary.datasets._examples import ExampleError, ExampleWarning
from captum_boundary.datasets._store import Explanation, FolderError
from captum_boundary.datasets.explain import explain_dataset
from captum_boundary.datasets.gallery import write_gallery
from captum_boundary.datasets.reading import Explanations, load_explanations, merge_explanations

__all__ = [
    "ExampleError",
    "ExampleWarning",
    "Explanation",
    "Explanations",
    "FolderError",
    "explain_dataset",
    "load_explanations",
    "merge_explanations",
    "write_gallery",
]
