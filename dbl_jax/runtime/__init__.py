"""The process and its surroundings: devices, signals, files, logs."""
