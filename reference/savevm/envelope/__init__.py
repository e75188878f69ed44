"""What a stream comes wrapped in."""
