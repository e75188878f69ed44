"""What a stream comes wrapped in: the files that hold one."""
