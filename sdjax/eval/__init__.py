"""What is measured of a trained model: success and variety."""
