"""What all stands on: errors, argument checks, flat points and their geometry, the model as a decision function."""
