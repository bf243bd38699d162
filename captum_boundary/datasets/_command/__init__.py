"""``python -m captum_boundary explain``."""
