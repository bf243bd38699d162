"""Training models whose attributions hold still, and testing that they do."""

from captum_boundary.robust.paper_settings import paper_settings
from captum_boundary.robust.rar_loss import RARLoss, RARParts

__all__ = ["RARLoss", "RARParts", "paper_settings"]
