"""The demonstration behind ``python -m captum_boundary``: handwritten digits and their nearest decision boundaries."""
